"""A checkpoint whose remote code kills its process for a certain text, as a broken kernel could."""

import json
from pathlib import Path

from transformers import AutoTokenizer

# No other text of the tests has these words in sequence.
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
    """Add this code to the folder of a BERT checkpoint; the job must set trust_remote_code."""
    killing = AutoTokenizer.from_pretrained(folder)(KILLING_TEXT, add_special_tokens=False)["input_ids"]
    Path(folder, "modeling_killer.py").write_text(_CODE.replace("KILLING", repr(killing)))
    config = Path(folder, "config.json")
    content = json.loads(config.read_text())
    content["auto_map"] = {"AutoModel": "modeling_killer.KillerModel"}
    config.write_text(json.dumps(content))
