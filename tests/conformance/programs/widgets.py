# state: ipywidgets
# needs: ipywidgets

# %%
import ipywidgets

slider = ipywidgets.IntSlider(value=3, max=7)
print(
    len(
        ipywidgets.Widget.widgets
        if hasattr(ipywidgets.Widget, "widgets")
        else ipywidgets.widgets.widget._instances
    )
    > 0
)
slider.observe(lambda change: got.append(change["new"]), "value")
got = []
model = slider.model_id

# %% client
import json

model = kernel.client.execute("0", user_expressions={"m": "model"}, reply=True, timeout=60)["content"][
    "user_expressions"
]["m"]["data"]["text/plain"].strip("'")
client = kernel.client
client.shell_channel.send(
    client.session.msg(
        "comm_msg",
        {"comm_id": model, "data": {"method": "update", "state": {"value": 5}, "buffer_paths": []}},
    )
)

# %%
print(got, slider.value)
