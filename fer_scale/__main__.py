"""`python -m fer_scale` is the command `fer-scale`."""

from fer_scale.cli import main

if __name__ == "__main__":
    main()
