# state: magics that measure

# %%
result = %timeit -n 5 -r 2 -o -q sum(range(10))
print(result.loops, result.repeat)

# %%
%%capture captured
%time sum(range(10))

# %%
print("Wall time" in captured.stdout)
%prun -q -T profile.txt sum(range(10))
print("function calls" in open("profile.txt").read())
