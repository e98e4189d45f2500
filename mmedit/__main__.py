"""`python -m mmedit`, which is what `accelerate launch -m mmedit` runs."""

from mmedit.cli import main

main()
