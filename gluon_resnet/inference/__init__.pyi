# SPDX-License-Identifier: Apache-2.0
from .form import inference_form as inference_form
