"""The first lines of kernels with Spark, in a real shell and a real ipykernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kit.jupyter.migration_cases import yarn
from roost.provisioners.migration import translate
from roost.testing.deadlines import allow_s


def translate_new(tmp_path: Path, document: Any) -> Any:
    """Return the new kernel.json of an old one."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kernel.json").write_text(json.dumps(document))
    return translate(tmp_path / "old").kernel_json


def test_the_shell_of_toree_passes_its_words_on(tmp_path: Path) -> None:
    """Run the new command with a program in the place of spark-submit."""
    document = yarn("", "--spark-context-initialization-mode", "lazy")
    document["env"] |= {
        "__TOREE_SPARK_OPTS__": "--master yarn --conf a.b='c d'",
        "__TOREE_OPTS__": "--alternate-sigint USR2",
    }
    kernel_json = translate_new(tmp_path, document | {"language": "scala"})
    submit = tmp_path / "bin" / "spark-submit"
    submit.parent.mkdir()
    submit.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    submit.chmod(0o755)
    argv = [word.replace("{connection_file}", "/run/a file.json") for word in kernel_json["argv"]]
    env = kernel_json["env"] | {
        "SPARK_HOME": str(tmp_path),
        "KERNEL_EXTRA_SPARK_OPTS": "--num-executors 2",
    }
    shown = subprocess.run(
        argv, env=os.environ | env, capture_output=True, text=True, check=True, timeout=allow_s(60)
    )
    words = shown.stdout.splitlines()
    assert words[:2] == ["--master", "yarn"]
    assert "a.b=c d" in words
    assert words[words.index("--num-executors") + 1] == "2"
    assert words[-4:] == ["--profile", "/run/a file.json", "--spark-context-initialization-mode", "lazy"]


_PROGRAM = """
import os, sys
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance(connection_file=sys.argv[1])
app.initialize([word for word in sys.argv[2:]])
names = app.shell.user_ns
print("ARGUMENTS", os.environ["PYSPARK_SUBMIT_ARGS"], file=sys.__stdout__)
print("BEFORE", type(names["spark"]).__name__, file=sys.__stdout__)
print("SUM", names["sql"]("one"), names["sc"].version, type(names["spark"]).__name__, file=sys.__stdout__)
import pyspark
class Jobs:
    def cancelAllJobs(self):
        print("CANCELLED", file=sys.__stdout__)
pyspark.SparkContext._active_spark_context = Jobs()
app.shell.run_cell("1/0")
print("INTERRUPT", file=sys.__stdout__)
app.shell.run_cell("raise KeyboardInterrupt")
sys.__stdout__.flush()
os._exit(0)
"""
_PYSPARK = """
class SparkSession:
    class builder:
        getOrCreate = staticmethod(lambda: SparkSession())
    sparkContext = type("Context", (), {"version": "3.5"})()
    sql = staticmethod(lambda query: f"ran {query}")
    stop = staticmethod(lambda: None)
"""


def test_a_real_ipykernel_has_spark_at_its_first_use(tmp_path: Path) -> None:
    """ipykernel reads the first lines from its command, and a stand-in for pyspark makes the session."""
    kernel_json = translate_new(tmp_path, yarn("--master yarn"))
    (tmp_path / "pyspark").mkdir()
    (tmp_path / "pyspark" / "__init__.py").write_text(
        "class SparkContext:\n    _active_spark_context = None\n"
    )
    (tmp_path / "pyspark" / "sql.py").write_text(_PYSPARK)
    options = kernel_json["argv"][5:]
    env = os.environ | kernel_json["env"]
    env |= {
        "PYTHONPATH": str(tmp_path),
        "KERNEL_EXTRA_SPARK_OPTS": "--num-executors 2",
        "IPYTHONDIR": str(tmp_path),
    }
    argv = [sys.executable, "-c", _PROGRAM, str(tmp_path / "kernel.json"), *options]
    shown = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=allow_s(120), cwd=tmp_path)
    lines = shown.stdout.splitlines()
    assert "BEFORE Later" in lines, shown.stderr
    assert "SUM ran one 3.5 SparkSession" in lines
    assert lines.index("INTERRUPT") < lines.index("CANCELLED")
    (arguments,) = (line for line in lines if line.startswith("ARGUMENTS"))
    assert arguments.split()[1:5] == ["--num-executors", "2", "--master", "yarn"]
