# state: what a cell displays

# %%
from IPython.display import HTML, JSON, Image, Javascript, Latex, Markdown, SVG, clear_output, display

display(HTML("<b>b</b>"), JSON({"a": 1}), Markdown("*m*"), Latex("$x$"))
handle = display("first", display_id="one")
handle.update("second")
print("before")
clear_output(wait=True)
print("after")


class Shown:
    def _repr_html_(self):
        return "<i>i</i>"

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/plain": "p", "application/x-own": {"a": 1}}


Shown()

# %%
{"set": {3}, "long": list(range(30))}

# %%
get_ipython().display_formatter.active_types
