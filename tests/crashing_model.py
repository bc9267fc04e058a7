"""A checkpoint whose own code kills its process when it meets a certain text, as a broken kernel would."""

import json
from pathlib import Path

from transformers import AutoTokenizer

# Two words that follow each other in no other text of the tests.
KILLING_TEXT = "xylophone quetzal"

_CODE = """
import os, signal
from transformers import BertModel

class KillerModel(BertModel):
    def forward(self, input_ids=None, **more):
        if input_ids is not None:
            ids = input_ids.flatten().tolist()
            if any(ids[at:at + len(KILLING)] == KILLING for at in range(len(ids))):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(input_ids=input_ids, **more)
"""


def make_killer(folder: str) -> None:
    """Give a BERT checkpoint's folder this code; the job must say trust_remote_code."""
    killing = AutoTokenizer.from_pretrained(folder)(KILLING_TEXT, add_special_tokens=False)["input_ids"]
    Path(folder, "modeling_killer.py").write_text(_CODE.replace("KILLING", repr(killing)))
    config = Path(folder, "config.json")
    content = json.loads(config.read_text())
    content["auto_map"] = {"AutoModel": "modeling_killer.KillerModel"}
    config.write_text(json.dumps(content))
