"""The variables with which an agent starts on a Ray node."""

from __future__ import annotations

import pytest

from roost.scheduler.backends.ray.agent_task import restore_variables

RAYS = "/env/site-packages/ray/core/libjemalloc.so"


@pytest.mark.parametrize(
    ("raylet", "expected"),
    [
        (
            {"LANG": "C", "RAY_raylet_pid": "7", "RAY_AUTH_MODE": "token"},
            {"LANG": "C", "RAY_AUTH_MODE": "token"},
        ),
        ({"LD_PRELOAD": RAYS, "RAY_LD_PRELOAD_ON_WORKERS": "0"}, {}),
        ({"LD_PRELOAD": RAYS, "RAY_LD_PRELOAD_ON_WORKERS": "1"}, {}),
        ({"LD_PRELOAD": "/lib/mine.so"}, {"LD_PRELOAD": "/lib/mine.so"}),
        ({"LD_PRELOAD": "/lib/libjemalloc.so.2"}, {"LD_PRELOAD": "/lib/libjemalloc.so.2"}),
        ({"LD_PRELOAD": "/j.so", "RAY_JEMALLOC_LIB_PATH": "/j.so"}, {}),
        ({"LD_PRELOAD": RAYS, "MALLOC_CONF": "prof:true", "RAY_JEMALLOC_CONF": "prof:true"}, {}),
        ({"MALLOC_CONF": "narenas:1"}, {"MALLOC_CONF": "narenas:1"}),
        (
            {
                "RAY_RAYLET_PERFTOOLS_PROFILER": "1",
                "PERFTOOLS_PATH": "/p.so",
                "PERFTOOLS_LOGFILE": "/log",
                "LD_PRELOAD": "/p.so",
                "CPUPROFILE": "/log",
            },
            {"PERFTOOLS_PATH": "/p.so", "PERFTOOLS_LOGFILE": "/log"},
        ),
    ],
)
def test_what_ray_sets_for_its_raylets_is_no_variable_of_a_kernel(
    raylet: dict[str, str], expected: dict[str, str]
) -> None:
    assert restore_variables(raylet) == expected
