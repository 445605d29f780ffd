"""The web page: a chat, drawing, editing, and how it works. Everything is computed by the server's one batcher.

Needs the extra `serve`; works without internet.
"""

from monoformer.serve.page.examples import Examples, find_examples
from monoformer.serve.page.mount import mount_page

__all__ = ["Examples", "find_examples", "mount_page"]
