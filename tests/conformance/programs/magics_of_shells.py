# state: magics that run other programs
# in ci: yes

# %%
%%bash
echo from bash $0; exit 0

# %%
%%sh
echo $((1 + 2)); echo problem >&2

# %%
%%bash --out text
echo kept

# %%
print(text)
lines = !printf 'a\nb\n'
print(lines, type(lines).__name__, get_ipython().system("exit 3"), _exit_code)

# %%
%%script python3 -c "import sys; print(sys.stdin.read().upper())"
words

# %%
%%bash
exit 3
