# SPDX-License-Identifier: Apache-2.0
"""Commands that turn published data sets into record files."""

import gluon_resnet  # noqa: F401  (prepares the import of mxnet)
