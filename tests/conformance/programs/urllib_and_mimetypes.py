# state: tables that modules build from the environment and from files
# env: http_proxy=http://proxy.example:3128 no_proxy=localhost

# %%
import mimetypes, urllib.request

print(
    urllib.request.getproxies(),
    urllib.request.proxy_bypass("localhost"),
    mimetypes.guess_type("a.ipynb"),
    mimetypes.guess_type("a.json"),
)
print(urllib.request._opener, [type(h).__name__ for h in urllib.request.build_opener().handlers][:2])
