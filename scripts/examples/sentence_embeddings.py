# SPDX-License-Identifier: Apache-2.0
"""Train sentence embeddings with sentence-transformers and SAM. What differs has `# SAM`.

python scripts/examples/sentence_embeddings.py      # pip install sentence-transformers
"""

import random

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import set_seed

from hf_sam import SAMConfig, SAMTrainerMixin  # SAM


class SAMSentenceTransformerTrainer(SAMTrainerMixin, SentenceTransformerTrainer):  # SAM: the mixin comes first
    """sentence-transformers' trainer, sharpness-aware."""


TOPICS = {"cooking": "pan oven salt dough spice", "sailing": "mast rope wind harbour anchor", "chess": "pawn rook king"}
WORDS = ["<unk>", *" ".join(TOPICS.values()).split(), "the", "a", "with", "and"]


def sentence(topic: str) -> str:
    return " ".join(random.choices(TOPICS[topic].split(), k=2) + random.choices(WORDS[-4:], k=3))


set_seed(0)
topics = random.choices(list(TOPICS), k=384)
pairs = Dataset.from_dict({name: [sentence(topic) for topic in topics] for name in ("anchor", "positive")})
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
args = SentenceTransformerTrainingArguments(
    "outputs/examples/sentence_embeddings", num_train_epochs=4, per_device_train_batch_size=16, learning_rate=5e-2,
    logging_steps=24, save_strategy="no", use_cpu=True, report_to="none",
)  # fmt: skip
trainer = SAMSentenceTransformerTrainer(  # SAM: SentenceTransformerTrainer(
    model,
    args,
    train_dataset=pairs,
    loss=MultipleNegativesRankingLoss(model),
    sam_config=SAMConfig(rho=0.1),  # SAM
)
trainer.train()
salt, pan, mast = model.encode(["salt and dough", "the pan with a spice", "the mast with a rope"])
same, other = (float(model.similarity(salt, each)) for each in (pan, mast))
print(f"similarity of two sentences about cooking: {same:.2f}, of one about cooking and one about sailing: {other:.2f}")
