"""Two clones with one git remote and one MLflow server promote at once: one champion, and no decision is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tasks.registry.lineage.explain import why
from tasks.registry.promotion import champion
from tasks.settings.params import load_params
from tests.registry.conftest import commit, run_again, shell
from tests.services.conftest import champions

TIMES = 10  # by each of the two
# Decides and publishes as often as it is asked to; takes in what the other has published wherever it is refused.
DECIDE = """
import sys, time
from flows.sharing import publish
from flows.sharing.merging import merge
from tasks.common.errors import InputError
from tasks.registry.promotion import champion, server_lock
from tasks.settings.params import load_params

server_lock.POLL_SECONDS = 0.05
publish._push_data = lambda _params: None  # no decision has new data, and DVC takes seconds to see that
who, times = sys.argv[1], int(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
refused = conflicts = 0
for number in range(times):
    while True:
        try:
            champion.rollback(load_params(), f"{who} {number}")
            break
        except InputError as error:
            if "pull it" not in str(error):
                raise
            refused += 1
            time.sleep(0.1)  # the other has yet to publish
            conflicts += len(merge()["conflicts"])
    conflicts += len(publish.publish()["conflicts"])
print(refused, conflicts)
"""


def test_twenty_at_once_leave_one_champion_and_every_decision(checkout: Path, origin: Path) -> None:
    champion.promote(load_params())
    run_again(content=2)
    champion.promote(load_params())
    assert champions() == {"champion": 2, "previous": 1}
    commit(checkout, "two versions")
    shell("git", "push", "-q", cwd=checkout)
    first = len(Path("decisions.jsonl").read_bytes().splitlines())
    clones = {"ada": checkout, "ben": Path(shutil.copytree(checkout, checkout.with_name("clone"), symlinks=True))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DECIDE, who, str(TIMES)],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who, folder in clones.items()
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            print("go", file=process.stdin, flush=True)
    finally:
        printed = [process.communicate(timeout=200)[0].split() for process in processes]
    assert [conflicts for _, conflicts in printed] == ["0", "0"]
    assert sum(int(refused) for refused, _ in printed)  # they were in each other's way

    subprocess.run(["git", "clone", "-q", str(origin), "../merged"], check=True)
    rows = [json.loads(line) for line in Path("../merged/decisions.jsonl").read_text().splitlines()]
    reasons = [reason for row in rows[first:] for reason in row["reasons"]]
    assert sorted(reasons) == sorted(f"{who} {number}" for who in clones for number in range(TIMES))
    for who in clones:
        own = [reason for reason in reasons if reason.startswith(who)]
        assert own == [f"{who} {number}" for number in range(TIMES)]
    assert champions() == {"champion": 2, "previous": 1}  # twenty turns later
    assert why(load_params(), "champion")["policy"]["md5"] == rows[-1]["policy"]["md5"]
