"""`warmstart run`: what it prints, what it reuses, and what stands in MLflow after it."""


def test_it(finished, warmstart, tiny):
    print(finished.done.err)
    print(finished.result["stages"])
    print(warmstart(finished.folder, "run", tiny).out)
