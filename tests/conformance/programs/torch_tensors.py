# state: torch, its threads and its seed
# needs: torch

# %%
import pathlib, torch

_ = pathlib.Path("drawn").write_text(repr(torch.rand(3).tolist()))
a = torch.ones(300, 300)
print(float((a @ a)[0, 0]), torch.get_num_threads())

# %% restart


# %%
import pathlib, torch

print(
    "the seed is fixed:",
    repr(torch.rand(3).tolist()) == pathlib.Path("drawn").read_text(),
    torch.initial_seed() > 0,
)
x = torch.ones(2, requires_grad=True)
(x * x).sum().backward()
print(x.grad)
