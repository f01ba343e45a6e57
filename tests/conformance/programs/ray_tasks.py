# state: ray
# end: killed
# needs: ray
# env: RAY_AUTH_MODE=disabled

# %%
import logging, ray

ray.init(
    num_cpus=1,
    include_dashboard=False,
    logging_level=logging.ERROR,
    log_to_driver=False,
    configure_logging=False,
)


@ray.remote
def work(n):
    return n + 1


print(ray.get(work.remote(1), timeout=100))
ray.shutdown()
