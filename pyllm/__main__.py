"""python -m pyllm"""

import sys

from .cli import main

sys.exit(main())
