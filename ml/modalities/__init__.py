"""Kinds of data. A modality is one file here and one line in this table."""

from ml.modalities.image import Image
from ml.modalities.question import Question
from ml.modalities.tagged import Tagged
from ml.modalities.text import Text
from ml.modalities.text_pair import TextPair

MODALITIES = {
    "image": Image,
    "text": Text,
    "question": Question,
    "tagged": Tagged,
    "text-pair": TextPair,
}
