"""Backbones: the networks that are pretrained and fine-tuned, all with one `encode(inputs) -> Features`."""

from ml.backbones.bart import Bart
from ml.backbones.bert import Bert
from ml.backbones.gpt import Gpt
from ml.backbones.resnet import ResNet18, ResNet34, ResNet50
from ml.backbones.small_cnn import SmallCNN
from ml.backbones.text_cnn import TextCnn
from ml.backbones.timm_model import TimmModel
from ml.backbones.vgg import VGG11, VGG16
from ml.backbones.vit import ViTB16, ViTTiny

BACKBONES: dict[str, type] = {
    "small-cnn": SmallCNN,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "vgg11": VGG11,
    "vgg16": VGG16,
    "vit-tiny": ViTTiny,
    "vit-b16": ViTB16,
    "timm": TimmModel,
    "text-cnn": TextCnn,
    "bert": Bert,
    "gpt": Gpt,
    "bart": Bart,
}
