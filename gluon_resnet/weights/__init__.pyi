# SPDX-License-Identifier: Apache-2.0
from .card import Card as Card
from .card import read_card as read_card
from .download import fetch as fetch
from .formats import read_tensors as read_tensors
from .load import LoadReport as LoadReport
from .load import classes_of as classes_of
from .load import load_weights as load_weights
from .published import DEFAULT_WEIGHTS as DEFAULT_WEIGHTS
from .published import Checkpoint as Checkpoint
from .published import checkpoint as checkpoint
from .published import list_weights as list_weights
from .published import published_file as published_file
from .save import save_weights as save_weights
