"""Models on disk: our folders, and the layouts of others that can be loaded or written."""

from monoformer.pretrained.folders import FolderConfig as FolderConfig
from monoformer.pretrained.folders import Pretrained as Pretrained
from monoformer.pretrained.folders import build_sequencer as build_sequencer
from monoformer.pretrained.folders import load_pretrained as load_pretrained
from monoformer.pretrained.folders import read_folder_config as read_folder_config
from monoformer.pretrained.folders import read_pretrained as read_pretrained
from monoformer.pretrained.folders import save_pretrained as save_pretrained
from monoformer.pretrained.llama import LoadedLlama as LoadedLlama
from monoformer.pretrained.llama import export_llama as export_llama
from monoformer.pretrained.llama import load_llama as load_llama
from monoformer.pretrained.llama import read_llama as read_llama
from monoformer.pretrained.official import LoadedOfficial as LoadedOfficial
from monoformer.pretrained.official import load_official as load_official
from monoformer.pretrained.weights import find_folder as find_folder
from monoformer.pretrained.weights import is_monoformer as is_monoformer
