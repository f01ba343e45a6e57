"""PySpark for the tests: an environment for YARN's nodes, and an image for pods with the same Python and Java.

`python -m kit.clusters.spark` builds both, once.
"""

from .build import QUICK_JAVA, python, spark_home, why_not, write_defaults
from .image import SPARK, USER, images, why_no_image

__all__ = [
    "QUICK_JAVA",
    "SPARK",
    "USER",
    "images",
    "python",
    "spark_home",
    "why_no_image",
    "why_not",
    "write_defaults",
]
