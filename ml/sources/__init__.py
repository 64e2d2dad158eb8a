"""Where rows come from. A source is one file here and one line in this table."""

from ml.sources.csv import Csv
from ml.sources.hugging_face import HuggingFace
from ml.sources.image_folder import ImageFolder
from ml.sources.parquet import Parquet
from ml.sources.python_docs import PythonDocs
from ml.sources.python_tokens import PythonTokens
from ml.sources.sklearn_digits import SklearnDigits
from ml.sources.squad import Squad
from ml.sources.tagged_text import TaggedText
from ml.sources.text_folder import TextFolder
from ml.sources.text_pairs import TextPairs
from ml.sources.text_table import TextTable
from ml.sources.torchvision import Torchvision

SOURCES = {
    "sklearn-digits": SklearnDigits,
    "image-folder": ImageFolder,
    "parquet": Parquet,
    "csv": Csv,
    "torchvision": Torchvision,
    "text-table": TextTable,
    "text-folder": TextFolder,
    "python-docs": PythonDocs,
    "squad": Squad,
    "tagged-text": TaggedText,
    "python-tokens": PythonTokens,
    "text-pairs": TextPairs,
    "hugging-face": HuggingFace,
}
