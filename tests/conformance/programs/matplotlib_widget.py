# state: ipympl
# needs: ipympl, matplotlib

# %%
%matplotlib widget
import matplotlib, matplotlib.pyplot as plt
print(matplotlib.get_backend().lower())
figure, axes = plt.subplots(); axes.plot([1, 2]); print(type(figure.canvas).__name__)
plt.close(figure)
