"""Kinds of data. A modality is one file here and one line in this table."""

from ml.modalities.image import Image
from ml.modalities.text import Text

MODALITIES = {
    "image": Image,
    "text": Text,
}
