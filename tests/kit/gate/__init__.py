"""The gate: which parts run on a change, and whether their failures let it land.

__main__ ──> runs the parts, and each failed test again, alone      `make gate`, `.ci/run`
  ├── parts      the parts of every landing, those that the change touches, and one by turn
  ├── results    the failed tests of a part, from pytest's own junit file
  ├── known      tests/flaky.toml: the flaky tests that are known, and for how long they count
  └── verdict    red or green, and the table at the end
"""
