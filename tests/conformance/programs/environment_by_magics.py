# state: the environment in IPython's magics
# env: PROGRAM_VARIABLE=value

# %%
%env PROGRAM_VARIABLE

# %%
%env PROGRAM_NEW=1
%set_env PROGRAM_SECOND=two
!echo $PROGRAM_NEW $PROGRAM_SECOND $PROGRAM_VARIABLE
