# SPDX-License-Identifier: Apache-2.0
from .classifier import Classifier as Classifier
from .classifier import inference_model as inference_model
from .classifier import init_model as init_model
from .create import create_model as create_model
from .create import list_models as list_models
from .inference.form import inference_form as inference_form
from .models.catalog import model_spec as model_spec
from .models.complexity import complexity as complexity
from .models.features import extract_feat as extract_feat
from .models.regularisers import set_drop_block as set_drop_block
from .postprocess import load_class_names as load_class_names
from .postprocess import postprocess as postprocess
from .preprocess import Protocol as Protocol
from .preprocess import preprocess as preprocess
from .preprocess import preprocess_batch as preprocess_batch
from .preprocess import read_image as read_image
from .preprocess import ten_crop as ten_crop
from .weights.load import LoadReport as LoadReport
from .weights.load import load_weights as load_weights
from .weights.published import list_weights as list_weights
from .weights.save import save_weights as save_weights

__version__: str
