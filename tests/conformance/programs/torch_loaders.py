# state: the worker processes of torch
# needs: torch

# %%
import torch.utils.data

data = torch.utils.data.TensorDataset(torch.arange(8.0))
print([batch[0].tolist() for batch in torch.utils.data.DataLoader(data, batch_size=4, num_workers=2)])
