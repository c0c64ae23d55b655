"""A small Hugging Face Hub for one machine: the HTTP API of the real one, over plain files, on 127.0.0.1.

With `HF_ENDPOINT` set to it, `huggingface_hub`, `datasets`, `timm` and `transformers` create repos, push to them and read
them, without an account or a network. `python -m local_hub --root DIR` serves a folder; from Python:

    with LocalHub("folder") as hub:
        subprocess.run([...], env={**os.environ, **hub.environment})

Nothing here imports a Hugging Face library, since they read `HF_ENDPOINT` when they are imported.

Not implemented: Xet storage (clients need `HF_HUB_DISABLE_XET=1`), the git protocol, `.gitignore`, the last commit of each
file (`expand`), pull requests and discussions, `auth_check`, gated repos, protected Spaces, `move_repo`,
`super_squash_history`, variables and secrets of Spaces, `list_user_repos` (`hf repos ls`), `list_collections`, and
changes to a collection other than new items.
"""

from local_hub.server import LocalHub
from local_hub.storage import HubError

__all__ = ["HubError", "LocalHub"]
