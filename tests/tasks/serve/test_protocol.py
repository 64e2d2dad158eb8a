"""The server says what the training code says, and takes and answers what MLflow's own does."""

import base64
import json

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.pyfunc.scoring_server import invocations

BAD = {"image": b"no picture", "text": "\u200b<br>", "question": {"question": "Who?", "context": ""}, "tagged": "\u200b ", "text-pair": "\u200b "}


@pytest.fixture(scope="module")
def peer(registered, model):
    """What MLflow's own server answers to a body."""
    loaded = mlflow.pyfunc.load_model(registered.client.get_model_version_download_uri(model.name, "1"))

    def answer(body: bytes, kind: str) -> list[dict]:
        told = invocations(body, kind, loaded, loaded.metadata.get_input_schema())
        assert told.status == 200
        return json.loads(told.response)["predictions"]

    return answer


def same(found: list[dict], expected: list[dict]) -> None:
    assert [list(row) for row in found] == [list(row) for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        for name, value in wanted.items():
            if isinstance(value, float | list):
                np.testing.assert_allclose(row[name], value, rtol=1e-4, atol=1e-6)
            else:
                assert row[name] == value


def bodies(model) -> dict[str, tuple[bytes, str]]:
    rows = [*model.rows(), *model.rows(BAD[model.name])]
    frame = pd.DataFrame(rows)
    made = {
        "dataframe_records": {"dataframe_records": rows},
        "dataframe_split": {"dataframe_split": {"columns": list(frame), "data": frame.to_numpy().tolist()}},
        "columns in another order, and more": {"dataframe_split": {"columns": ["more", *reversed(list(frame))], "data": [[1, *reversed(list(row.values()))] for row in rows]}},
        "instances": {"instances": rows},
        "inputs": {"inputs": frame.to_dict("list")},
        "one row": {"dataframe_records": rows[:1]},
        "a bad row alone": {"dataframe_records": rows[-1:]},
        "no row": {"dataframe_split": {"columns": list(frame), "data": []}},
    }
    return {name: (json.dumps(content).encode(), "application/json") for name, content in made.items()} | {"csv": (frame.to_csv(index=False).encode(), "text/csv; charset=utf-8")}


def test_it_answers_as_mlflow_does_and_as_the_training_code(server, peer, model):
    for name, (body, kind) in bodies(model).items():
        answer = server.ask("/invocations", body, {"Content-Type": kind})
        assert answer.status == 200, (name, answer.body)
        assert answer.headers["X-Model-Version"] == "1"
        same(answer.json["predictions"], peer(body, kind))
    frame = model.expected().predict([*model.values, BAD[model.name]])
    frame = frame.astype(object).where(frame.notna(), None)
    same(server.predictions([*model.rows(), *model.rows(BAD[model.name])]), json.loads(frame.to_json(orient="records", double_precision=15)))


def test_a_bad_row_costs_only_itself(server, model):
    rows = server.predictions([*model.rows(model.values[0]), *model.rows(BAD[model.name]), *model.rows(model.values[1])])
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert all(value is None for name, value in rows[1].items() if name != "error")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", ["not JSON", "dataframe_split"]),
        (b"\xff{}", ["not UTF-8"]),
        (b"[" * 100_000, ["not JSON"]),
        (b"[]", ["a list", "dataframe_records"]),
        (b"{}", ["nothing", "dataframe_records"]),
        (b'{"dataframe_records": [], "inputs": {}}', ["dataframe_records", "inputs"]),
        (b'{"dataframe_records": 3}', ["list of records"]),
        (b'{"dataframe_records": [{"other": "x"}]}', ["missing", "expected the column"]),
        (b'{"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}', ["expected the column"]),
        (b'{"dataframe_split": {"data": 3}}', ["expected the column"]),
        (b'{"instances": null}', ["expected the column"]),
        (b'{"inputs": {"a": {"b": 1}}}', ["expected the column"]),
    ],
    ids=lambda value: value[:40].decode("latin1") if isinstance(value, bytes) else "",
)
def test_a_wrong_request_gets_400_and_what_was_expected(server, body, words):
    answer = server.ask("/invocations", body)
    assert answer.status == 400 and answer.json["error_code"] == "BAD_REQUEST"
    for word in words:
        assert word in answer.json["message"]
    assert "Traceback" not in answer.body.decode() and len(answer.body) < 1000


def test_wrong_types_and_methods(server, model):
    for kind in ("text/plain", "application/json; charset=latin-1", "", "application/vnd.apache.parquet"):
        answer = server.ask("/invocations", {"dataframe_records": model.rows()}, {"Content-Type": kind})
        assert answer.status == 415 and "application/json or text/csv" in answer.json["message"]
    assert server.ask("/invocations").status == 405 and server.ask("/nothing").status == 404


def test_pings_and_versions(server, model):
    assert server.ask("/ping").status == 200
    assert server.ask("/version").body.decode() == mlflow.__version__
    assert server.ask("/health").json == {"status": "ok", "model": f"models:/{model.name}@champion", "version": "1", "problem": None}
    told = server.ask("/model").json
    assert told["uri"] == f"models:/{model.name}/1" and [one["name"] for one in told["fields"]] == list(model.modality.fields)
    assert told["outputs"] == list(model.expected().predict(model.values).columns)


def test_no_file_and_no_address_is_read(serving, registered):
    model = registered.models["image"]
    secret = registered.folder / "secret.png"
    secret.write_bytes(model.values[0])
    with serving("image@champion", WARMSTART_ALLOW_PATHS="1") as server:
        tries = [str(secret), f"file://{secret}", f"data:image/png;base64,{base64.b64encode(model.values[0]).decode()}", "http://169.254.169.254/"]
        for one in tries:  # MLflow itself refuses what is no base64
            answer = server.ask("/invocations", {"dataframe_records": [{"image": one}]})
            assert answer.status == 400 or (answer.json["predictions"][0]["error"] and answer.json["predictions"][0]["label"] is None)
        csv = "image\n" + "\n".join(f'"{one}"' for one in tries)
        for row in server.ask("/invocations", csv.encode(), {"Content-Type": "text/csv"}).json["predictions"]:
            assert row["error"] and row["label"] is None


def test_a_backbone_is_served_too(serving, registered, embedder):
    model = registered.models["image"]
    with serving("models:/image-backbone/1") as server:
        rows = server.predictions(model.rows())
    expected = embedder.predict(model.values)
    np.testing.assert_allclose([[row[name] for name in expected if name != "error"] for row in rows], expected.drop(columns="error"), rtol=1e-4, atol=1e-6)


def test_the_page_holds_no_word_of_the_model_and_nothing_from_elsewhere(server, model):
    page = server.ask("/")
    policy, text = page.headers["Content-Security-Policy"], page.body.decode()
    assert page.status == 200 and page.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert "innerHTML" not in text and "://" not in text and " style=" not in text and " onclick=" not in text
    for name in getattr(model.expected().spec, "classes", ()):
        assert name not in text
    assert model.name + "@" not in text
