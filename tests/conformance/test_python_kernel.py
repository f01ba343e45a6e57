"""Checks the messages of ipykernel under the default provisioner, with the suite jupyter_kernel_test."""

from __future__ import annotations

from typing import Any

import jupyter_kernel_test


class TestPythonKernel(jupyter_kernel_test.KernelTests):  # type: ignore[misc]
    """The suite of jupyter_kernel_test, with every optional check that ipykernel supports."""

    kernel_name = "python3"
    language_name = "python"
    file_extension = ".py"

    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    code_generate_error = "1 / 0"
    code_page_something = "zip?"
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    completion_samples: Any = [{"text": "zi", "matches": {"zip"}}, {"text": "impor", "matches": {"import"}}]
    complete_code_samples: Any = ["1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples: Any = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples: Any = ["import = 7q"]

    code_execute_result: Any = [
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
        {"code": "'ä' * 3", "result": "'äää'"},
    ]
    code_display_data: Any = [
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))",
            "mime": "text/html",
        },
        {"code": "from IPython.display import Math, display; display(Math('x'))", "mime": "text/latex"},
    ]

    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
