# SPDX-License-Identifier: Apache-2.0
"""Makes the modules beside the goldens importable: both sides of a parity use them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "golden"))
