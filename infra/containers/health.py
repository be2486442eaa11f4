"""Exit with 0 where an address answers HTTP 200: the image has no curl. `python health.py URL`."""

import sys
from urllib.request import ProxyHandler, build_opener

if __name__ == "__main__":
    with build_opener(ProxyHandler({})).open(sys.argv[1], timeout=8) as answer:
        sys.exit(answer.status != 200)
