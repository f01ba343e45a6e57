"""The operator's settings: read from `jupyter_roost_config`, checked, and frozen.

    service ──> load_settings                                                    files
                  ├──> Settings: the scheduler's own section                     settings
                  ├──> the backend's section, which its BackendSpec names        backends/NAME/settings
                  │       └── ForkingSettings, EnforcementSettings               shared_sections
                  │    each is a Section, with traits such as Memory             section, memory_size
                  └──> a value that is refused becomes one sentence              trait_errors

The check of a new kernelspec reads the same settings without a service (`client/service_checks.py`). Provisioners use
`memory_size` and `trait_errors`.

This package stands above the files of `backends/`, and below the folders there: each has a section of its own.
"""
