"""Drives every RPC of every service that a cluster's daemons list.

    every_rpc.py GATEWAY PARTICIPANT [PARTICIPANT...]

Prints each method that was called, one a line; any surprise ends it with a traceback.
"""

import base64
import os
import sys
import threading
import time
import uuid
from datetime import datetime

from reflected import Refused, Server, check, eventually, expect, refusal

INSERT = "INSERT INTO foreign_test.t (id, v) VALUES (?, ?)"
SELECT = "SELECT id, v FROM foreign_test.t WHERE id = ?"
# Attempts of what the participant's own sweep may undo; see `prepared`.
ATTEMPTS = 5


def fresh():
    """A transaction's id as a coordinator would make it: a UUIDv7, in bytes and in text."""
    raw = bytearray(int(time.time() * 1000).to_bytes(6, "big") + os.urandom(10))
    raw[6] = 0x70 | raw[6] & 0x0F
    raw[8] = 0x80 | raw[8] & 0x3F
    return bytes(raw), str(uuid.UUID(bytes=bytes(raw)))


def b64(data):
    return base64.b64encode(data).decode()


def statement(sql, *params, **more):
    return {"sql": sql, "params": list(params), **more}


def on(participant, sql, *params, **more):
    return {"participant": participant, "statement": statement(sql, *params, **more)}


def health(server):
    check(server.call("Health/Check")["status"] == "SERVING", "the daemon serves")
    for name in server.services:
        if name.startswith("concord."):
            check(server.call("Health/Check", service=name)["status"] == "SERVING", name)
    check(refusal(server.call, "Health/Check", service="nobody").code == "NOT_FOUND", "a stranger")
    watch = server.stream("Health/Watch", service="")
    check(next(watch)["status"] == "SERVING", "the first answer comes at once")
    watch.close()


def bank(gateway, accounts):
    places = set()
    for account in accounts:
        opened = gateway.call(
            "BankService/OpenAccount", accountId=account, currency="EUR", initialBalance=10_000
        )["account"]
        check(opened["balance"] == "10000", "a 64-bit number is a string in JSON")
        places.add(opened["participant"])
    check(len(places) > 1, f"the accounts lie on {places} only")
    taken = refusal(gateway.call, "BankService/OpenAccount", accountId=accounts[0], currency="EUR")
    expect(taken, "ALREADY_EXISTS", "ACCOUNT_EXISTS")
    check(taken.metadata["participant"] in places, "the refusal names who refused")
    one, two = accounts[:2]
    request = {
        "fromAccountId": one, "toAccountId": two, "amount": 2_500,
        "memo": "Miete für März 🏠", "requestId": "foreign-1",
    }
    moved = gateway.call("BankService/Transfer", **request)
    again = gateway.call("BankService/Transfer", **request)
    check(not moved["replayed"] and again["replayed"], "the second is a replay")
    check(moved["gtrid"] == again["gtrid"], "of the same transaction")
    other = refusal(gateway.call, "BankService/Transfer", **{**request, "amount": 2_501})
    expect(other, "INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    balance = gateway.call("BankService/GetAccount", accountId=one)["account"]["balance"]
    check(balance == "7500", f"paid once: {balance}")
    poor = refusal(
        gateway.call, "BankService/Transfer", fromAccountId=one, toAccountId=two, amount=7_501
    )
    expect(poor, "FAILED_PRECONDITION", "INSUFFICIENT_FUNDS")
    check("7500" in poor.message and "7501" in poor.message, poor.message)
    check(set(poor.metadata) == {"gtrid", "participant"}, f"{poor.metadata}")
    bad = refusal(gateway.call, "BankService/Transfer", fromAccountId=one, toAccountId=one)
    expect(bad, "INVALID_ARGUMENT", "INVALID_FIELD", "to_account_id", "amount")
    entries = gateway.call("BankService/ListTransfers", accountId=two)["entries"]
    check([e["amount"] for e in entries] == ["2500", "10000"], f"the journal: {entries}")
    check(entries[0]["memo"] == request["memo"], "text survives")
    seen, token = [], ""
    while True:
        page = gateway.call("BankService/ListAccounts", pageSize=2, pageToken=token)
        seen += [a["accountId"] for a in page["accounts"]]
        token = page["nextPageToken"]
        if not token:
            break
    check(seen == sorted(seen) and set(accounts) <= set(seen), f"accounts in order: {seen}")
    return moved["gtrid"]


def inventory(gateway, accounts):
    for product, price in [("pen", 150), ("pencil", 80), ("desk", 9_000)]:
        made = gateway.call(
            "InventoryService/CreateProduct", productId=product, price=price, currency="EUR",
            initialStock=10,
        )
        check(made["product"]["name"] == product, "its name is its id")
    restocked = gateway.call("InventoryService/Restock", productId="pen", quantity=5)
    check(restocked["gtrid"] and not restocked["replayed"], f"{restocked}")
    stock = gateway.call("InventoryService/GetProduct", productId="pen")["product"]["stock"]
    check(stock == "15", f"restocked: {stock}")
    names = [p["productId"] for p in gateway.call("InventoryService/ListProducts")["products"]]
    check(names == ["desk", "pen", "pencil"], f"{names}")
    order = gateway.call(
        "InventoryService/PlaceOrder", orderId="o-1",
        lines=[{"productId": "pen", "quantity": 2}, {"productId": "pencil", "quantity": 1}],
        payment={"fromAccountId": accounts[1], "toAccountId": accounts[2]},
    )["order"]
    check(order["total"] == "380", f"{order}")
    read = gateway.call("InventoryService/GetOrder", orderId="o-1")["order"]
    check(read["lines"] == order["lines"] and read["gtrid"] == order["gtrid"], f"{read}")
    listed = gateway.call("InventoryService/ListOrders", pageSize=10)["orders"]
    check([o["orderId"] for o in listed] == ["o-1"], f"{listed}")
    short = refusal(
        gateway.call, "InventoryService/PlaceOrder", lines=[{"productId": "desk", "quantity": 11}]
    )
    expect(short, "FAILED_PRECONDITION", "INSUFFICIENT_STOCK")


def watched(gateway, act):
    """The state changes of the transactions that `act` makes, again and again, until some come:
    a watcher has no first answer that would say that it is there."""
    changes, ready = [], threading.Event()
    stream = gateway.stream("TransactionService/WatchTransactions")

    def watch():
        for change in stream:
            changes.append(change)
            if change["state"] == "TRANSACTION_STATE_COMMITTED" and change["bqual"] == 0:
                ready.set()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    done = act()
    while not ready.wait(0.5):
        done = act()
    watcher.join(30)
    check(not watcher.is_alive() and changes, f"the watcher saw {changes}")
    return done


def transactions(gateway, one, two):
    number = iter(range(100, 200))

    def act():
        n = {"int64": next(number)}
        return gateway.call(
            "TransactionService/Execute",
            statements=[
                on(one, INSERT, n, {"string": "ä"}, expect={"min": 1, "max": 1}),
                on(two, INSERT, n, {"null": "NULL_VALUE_NULL"}),
                on(two, SELECT, n),
            ],
            requestId=f"foreign-{n}", isolation="ISOLATION_READ_COMMITTED", timeoutMs=9_000,
        )

    done = watched(gateway, act)
    check([r["rows"] for r in done["results"]] == ["1", "1", "1"], f"{done}")
    select = done["results"][2]
    check([c["name"] for c in select["columns"]] == ["id", "v"], f"{select}")
    check(select["result"][0]["values"][1] == {"null": "NULL_VALUE_NULL"}, f"{select}")

    begin = {"isolation": "ISOLATION_REPEATABLE_READ"}
    gtrid = gateway.call("TransactionService/Begin", **begin)["gtrid"]
    for name in (one, two):
        result = gateway.call(
            "TransactionService/ExecuteStatement", gtrid=gtrid,
            statement=on(name, INSERT, {"int64": 1}, {"string": name}),
        )["result"]
        check(result["rows"] == "1", f"{result}")
    check(gateway.call("TransactionService/Commit", gtrid=gtrid)["gtrid"] == gtrid, "committed")
    found = gateway.call("TransactionService/GetTransaction", gtrid=gtrid)["transaction"]
    check(found["state"] == "TRANSACTION_STATE_COMMITTED", f"{found}")
    check([b["participant"] for b in found["branches"]] == [one, two], f"{found}")

    gtrid = gateway.call("TransactionService/Begin")["gtrid"]
    gateway.call(
        "TransactionService/ExecuteStatement", gtrid=gtrid,
        statement=on(one, INSERT, {"int64": 2}, {"string": "never"}),
    )
    gateway.call("TransactionService/Rollback", gtrid=gtrid)
    late = refusal(gateway.call, "TransactionService/Commit", gtrid=gtrid)
    expect(late, "CANCELLED", "ROLLED_BACK")
    check(late.metadata["gtrid"] == gtrid, "the refusal names the transaction")
    aborted = gateway.call(
        "TransactionService/ListTransactions", pageSize=5,
        states=["TRANSACTION_STATE_ABORTING", "TRANSACTION_STATE_ABORTED"],
    )["transactions"]
    check(gtrid in [tx["gtrid"] for tx in aborted], f"{aborted}")


def outcomes(gateway, gtrid, name):
    unknown, _ = fresh()
    ids = [uuid.UUID(gtrid).bytes, unknown]
    answer = gateway.call(
        "OutcomeService/Inquire", participant=name,
        branches=[{"gtrid": b64(raw), "bqual": 1} for raw in ids],
    )
    check(answer["decisions"] == ["DECISION_COMMIT", "DECISION_ABORT"], f"{answer}")


def administration(gateway, names):
    status = gateway.call("AdminService/GetClusterStatus")
    check(status["accepting"] and int(status["counters"]["committed"]) > 0, f"{status}")
    listed = gateway.call("AdminService/ListParticipants")["participants"]
    check([p["name"] for p in listed] == names, f"{listed}")
    check(all(p["connected"] and p["status"]["canVote"] for p in listed), f"{listed}")
    # A rollback is answered when it is decided; its branches end a moment later.
    eventually("nothing is in doubt", lambda: not gateway.call("AdminService/ListInDoubt")["branches"])
    settings = gateway.call("AdminService/GetConfig")["settings"]
    check("limits.max_in_flight" in [s["key"] for s in settings], f"{settings}")
    _, gtrid = fresh()
    nobody = refusal(
        gateway.call, "AdminService/ResolveBranch", gtrid=gtrid, bqual=1, participant=names[0],
        resolution="RESOLUTION_ABORT", reason="a test",
    )
    expect(nobody, "NOT_FOUND", "BRANCH_NOT_FOUND")
    fixed = refusal(gateway.call, "AdminService/UpdateConfig", settings={"cluster": "other"})
    expect(fixed, "FAILED_PRECONDITION", "WRONG_STATE")
    metrics = gateway.stream("AdminService/WatchMetrics", intervalMs=100)
    first, second = next(metrics), next(metrics)
    metrics.close()
    # As times, since the text of a whole second has no fraction.
    times = [datetime.fromisoformat(metrics["time"]) for metrics in (first, second)]
    check(times[0] < times[1], f"{first} {second}")
    # This version answers TailLogs with UNIMPLEMENTED; a later one with lines, if there are any.
    try:
        next(gateway.stream("AdminService/TailLogs", timeout=2, level="INFO"))
    except Refused as refused:
        check(refused.code in ("UNIMPLEMENTED", "DEADLINE_EXCEEDED"), f"{refused}")


def branch(epoch):
    raw, text = fresh()
    return {"gtrid": b64(raw), "bqual": 1, "epoch": epoch}, text


def prepared(server, epoch, id_):
    """Begin, Execute, Prepare, Commit. The coordinator knows nothing of this transaction, so that
    the participant's own sweep may abort it before the last: then it is done again."""
    for _ in range(ATTEMPTS):
        ref, text = branch(epoch)
        server.call("Participant/Begin", branch=ref)
        ran = server.call(
            "Participant/Execute", branch=ref,
            statement=statement(INSERT, {"int64": id_}, {"string": "interactive"}),
        )
        check(ran["result"]["rows"] == "1", f"{ran}")
        vote = server.call("Participant/Prepare", branch=ref)
        check(vote["vote"] == "VOTE_COMMIT", f"{vote}")
        listed = server.call("Participant/ListBranches", pageSize=1_000)["branches"]
        finish = server.call("Participant/Commit", branch=ref)["finish"]
        if finish == "FINISH_COMMITTED":
            check(text in [b["gtrid"] for b in listed], f"{text} is not in {listed}")
            return ref
    raise AssertionError(f"never committed: {finish}")


def participant(server, id_):
    status = server.call("Participant/GetStatus")
    check(status["canVote"], f"{status}")
    epoch = status["epoch"]
    committed = prepared(server, epoch, id_)
    read = server.call("Participant/Query", statement=statement(SELECT, {"int64": id_}))
    check(read["result"]["result"][0]["values"][1] == {"string": "interactive"}, f"{read}")

    ref, _ = branch(epoch)
    work = {"statements": [statement(INSERT, {"int64": id_ + 1}, {"string": "aborted"})]}
    check(server.call("Participant/Prepare", branch=ref, work=work)["vote"] == "VOTE_COMMIT", "yes")
    check(server.call("Participant/Abort", branch=ref)["finish"] == "FINISH_ABORTED", "aborted")
    ended = server.call(
        "Participant/Resolve", branch=committed, resolution="RESOLUTION_ABORT", reason="a test"
    )
    check(ended["finish"] == "FINISH_COMMITTED", f"{ended}")
    check(ended["reason"]["code"] == "CONTRADICTS_OUTCOME", f"{ended}")
    none = refusal(server.call, "Participant/AcknowledgeDamage", id=4_711)
    expect(none, "NOT_FOUND", "DAMAGE_NOT_FOUND")
    table = "CREATE TABLE IF NOT EXISTS concord_foreign.a (id INT PRIMARY KEY)"
    migrated = server.call(
        "Participant/Migrate", schema="concord_foreign",
        migrations=[{"version": 1, "statements": [table]}],
    )
    check(migrated["version"] == 1, f"{migrated}")
    zero = refusal(server.call, "Participant/Abort", branch={**ref, "epoch": 0})
    expect(zero, "INVALID_ARGUMENT", "INVALID_FIELD", "branch.epoch")
    link(server, epoch, id_ + 2)


def link(server, epoch, id_):
    """The stream that a coordinator holds. Ours replaces its own, which then connects anew."""
    ref, _ = branch(epoch)
    bad = {**ref, "bqual": 65}
    work = {"statements": [statement(INSERT, {"int64": id_}, {"string": "linked"})]}
    voted, done, replies = threading.Event(), threading.Event(), {}

    def frames():
        prepare = {"seq": 1, "prepare": {"branch": ref, "work": work}}
        yield {"commands": [prepare, {"seq": 2, "abort": {"branch": bad}}]}
        voted.wait(30)
        yield {"commands": [{"seq": 3, "abort": {"branch": ref}}]}
        done.wait(30)

    for frame in server.duplex("Participant/Link", frames()):
        replies.update((int(reply["seq"]), reply) for reply in frame["replies"])
        if {1, 2} <= replies.keys():
            voted.set()
        if 3 in replies:
            break
    done.set()
    check(replies[1]["prepare"]["vote"] == "VOTE_COMMIT", f"{replies}")
    check(replies[2]["refused"]["code"] == "INVALID_FIELD", f"{replies}")
    check(replies[3]["abort"]["finish"] == "FINISH_ABORTED", f"{replies}")


def linked(gateway):
    listed = gateway.call("AdminService/ListParticipants")["participants"]
    return all(p["connected"] for p in listed)


def main(gateway, *participants):
    servers = [Server(address) for address in (gateway, *participants)]
    front, rest = servers[0], servers[1:]
    check("concord.v1.Participant" not in front.services, "the gateway lists what it serves")
    alone = {"concord.v1.Participant", "grpc.health.v1.Health"}
    check(all(set(server.services) == alone for server in rest), "and so do participants")
    for server in servers:
        health(server)
    names = [server.call("Participant/GetStatus")["name"] for server in rest]
    accounts = ["amy", "ben", "cleo", "dan", "eva", "fay"]
    gtrid = bank(front, accounts)
    inventory(front, accounts)
    transactions(front, *names[:2])
    outcomes(front, gtrid, names[0])
    administration(front, names)
    for server in rest:
        participant(server, 1_000)
    eventually("the coordinator is linked again", lambda: linked(front))
    for server in servers:
        missed = {path for path in server.methods() - server.called if path.startswith("concord.")}
        check(not missed, f"not called on {server.address}: {missed}")
    for path in sorted(set().union(*(server.called for server in servers))):
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
