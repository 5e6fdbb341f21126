"""From prompt to picture through Python, on the built-in model."""

import json
import logging
import multiprocessing
import signal
import threading
import time

import numpy as np
import pytest

import mdrt

PROMPT = "tiger on a blue background"


@pytest.fixture(scope="module")
def pipe():
    with mdrt.Pipeline() as opened:
        yield opened


@pytest.fixture(scope="module")
def tiger(pipe):
    return np.asarray(pipe(PROMPT, seed=1))


def test_picture(pipe, tiger):
    assert tiger.shape == (128, 128, 3) and tiger.dtype == np.uint8
    assert tiger.std() > 20


def test_same_seed_same_bytes(pipe, tiger):
    image = pipe(PROMPT, seed=1)
    assert np.array_equal(np.asarray(image), tiger)
    assert not np.array_equal(np.asarray(pipe(PROMPT, seed=2)), tiger)


def test_threads_do_not_change_bytes(tiger):
    for threads in (1, 2, 5):
        with mdrt.Pipeline(threads=threads) as other:
            assert np.array_equal(np.asarray(other(PROMPT, seed=1)), tiger)


def test_output_types(pipe, tiger):
    array = pipe(PROMPT, seed=1, output_type="np")
    assert array.dtype == np.float32 and array.shape == (128, 128, 3)
    assert np.array_equal(np.rint(array * 255).astype(np.uint8), tiger)
    latent = pipe(PROMPT, seed=1, output_type="latent")
    assert latent.dtype == np.float32 and latent.shape == (1, 8, 16, 16)
    with pytest.raises(mdrt.InvalidArgumentError, match="output_type"):
        pipe(PROMPT, output_type="pt")


def test_lists_and_seeds(pipe, tiger):
    images = pipe([PROMPT, "red apple"], seed=0, num_images_per_prompt=2)
    assert len(images) == 4
    assert np.array_equal(np.asarray(images[1]), tiger)
    assert np.array_equal(np.asarray(images[3]), np.asarray(pipe("red apple", seed=3)))
    assert [json.loads(image.info["mdrt"])["seed"] for image in images] == [0, 1, 2, 3]
    assert isinstance(pipe([PROMPT], seed=1), list)


def test_random_seed_is_told(pipe):
    image = pipe(PROMPT)
    assert json.loads(image.info["mdrt"])["seed"] == pipe.last_seed
    assert np.array_equal(np.asarray(image), np.asarray(pipe(PROMPT, seed=pipe.last_seed)))


def test_picture_tells_how_it_was_made(pipe):
    image = pipe("köning 👑", negative_prompt="blue", num_inference_steps=8, guidance_scale=2, seed=5)
    made = json.loads(image.info["mdrt"])
    assert made["prompt"] == "köning 👑" and made["guidance_scale"] == 2 and made["num_inference_steps"] == 8
    again = pipe(
        made["prompt"],
        negative_prompt=made["negative_prompt"],
        num_inference_steps=made["num_inference_steps"],
        guidance_scale=made["guidance_scale"],
        width=made["width"],
        height=made["height"],
        seed=made["seed"],
    )
    assert np.array_equal(np.asarray(again), np.asarray(image))
    assert image.info["parameters"].splitlines()[:2] == ["köning 👑", "Negative prompt: blue"]
    assert (
        "Steps: 8, Sampler: DDIM, CFG scale: 2, Seed: 5, Size: 128x128, Model: emoji, RNG: philox"
        in image.info["parameters"]
    )


def test_latents(pipe, tiger):
    noise = mdrt._core.philox_normal(1, 0, 8 * 16 * 16).reshape(1, 8, 16, 16)
    assert np.array_equal(np.asarray(pipe(PROMPT, latents=noise)), tiger)
    assert len(pipe([PROMPT, "pizza"], latents=np.concatenate([noise, noise]))) == 2
    assert pipe(PROMPT, latents=np.zeros((1, 8, 12, 20))).size == (160, 96)
    for wrong in (noise[0], noise[:, :4], np.concatenate([noise] * 3), noise * np.nan):
        with pytest.raises(mdrt.InvalidArgumentError, match="latents"):
            pipe(PROMPT, latents=wrong)
    with pytest.raises(mdrt.InvalidArgumentError, match="does not fit the latents"):
        pipe(PROMPT, latents=noise, width=64)


def test_sizes(pipe):
    assert pipe(PROMPT, width=64, height=104).size == (64, 104)
    for width, nearest in ((100, 104), (1, 8), (107, 104)):
        with pytest.raises(
            mdrt.InvalidArgumentError, match=f"width {width} is not a multiple of 8; the nearest is {nearest}$"
        ):
            pipe(PROMPT, width=width)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"width": -8},
        {"height": 64.0},
        {"width": True},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": "1"},
        {"num_inference_steps": 0},
        {"num_inference_steps": 1001},
        {"guidance_scale": float("nan")},
        {"guidance_scale": float("inf")},
        {"guidance_scale": "2"},
        {"num_images_per_prompt": 0},
        {"negative_prompt": None},
    ],
    ids=str,
)
def test_wrong_arguments(pipe, wrong):
    with pytest.raises(mdrt.InvalidArgumentError, match=next(iter(wrong))):
        pipe(PROMPT, **wrong)


@pytest.mark.parametrize("prompt", [None, 5, b"tiger", [], ["a", None], "a\0b", "half \ud800"], ids=repr)
def test_wrong_prompts(pipe, prompt):
    with pytest.raises((mdrt.InvalidArgumentError, TypeError)):
        pipe(prompt)


@pytest.mark.parametrize("prompt", ["", " ", "🐯🏳️‍🌈", "ﷺ" * 50, "İ\u0307\u200f", "虎", "<|endoftext|>"], ids=repr)
def test_odd_prompts(pipe, prompt):
    assert pipe(prompt, seed=0).size == (128, 128)


def test_long_prompt_is_warned_about(pipe, caplog):
    with caplog.at_level(logging.WARNING, "mdrt"):
        pipe("tiger " * 20_000, seed=0)
    assert "the rest is ignored" in caplog.text


def test_negative_prompt_without_guidance_is_warned_about(pipe, tiger, caplog):
    with caplog.at_level(logging.WARNING, "mdrt"):
        assert np.array_equal(np.asarray(pipe(PROMPT, negative_prompt="red", seed=1)), tiger)
    assert "no effect without guidance" in caplog.text
    caplog.clear()
    pipe(PROMPT, negative_prompt="red", guidance_scale=2, seed=1)
    assert not caplog.text


def test_the_built_in_model_needs_no_guidance(pipe):
    """What docs/built-in-model.md says; other tests take any guidance that the bundle stores."""
    stored = {entry["num_inference_steps"]: entry["guidance_scale"] for entry in pipe.config["schedules"]}
    assert stored == {1: 1, 8: 1}


def test_steps_that_are_not_stored(pipe, tiger, monkeypatch):
    schedules = [{**entry, "guidance_scale": entry["num_inference_steps"] / 4} for entry in pipe.config["schedules"]]
    monkeypatch.setitem(pipe.config, "schedules", schedules)
    image = pipe(PROMPT, num_inference_steps=7, seed=1)
    assert json.loads(image.info["mdrt"])["guidance_scale"] == 2  # of eight steps, the nearest stored count
    assert not np.array_equal(np.asarray(image), tiger)


def test_rows_made_here_equal_stored_ones(pipe, monkeypatch):
    options = {"num_inference_steps": 8, "guidance_scale": 2, "seed": 1}
    stored = pipe(PROMPT, **options)
    monkeypatch.setitem(pipe.config, "schedules", pipe.config["schedules"][:1])
    assert np.array_equal(np.asarray(pipe(PROMPT, **options)), np.asarray(stored))


def test_events(pipe):
    events = list(pipe.stream(PROMPT, seed=1, num_inference_steps=8))
    assert [event.image is not None for event in events] == [False] * (len(events) - 1) + [True]
    assert {event.stage for event in events} == {"text_encoder", "unet", "vae_decoder", "done"}
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions) and fractions[-1] == 1
    assert len(set(fractions)) > 10
    assert {event.step for event in events if event.stage == "unet"} == set(range(1, 9))
    assert all(event.total == 8 for event in events)


def test_fraction_moves_inside_the_one_step(pipe):
    events = list(pipe.stream(PROMPT, seed=1))
    assert len({event.fraction for event in events if event.stage == "unet"}) > 5
    assert len(events) <= 110, "slices of about 1/100 of the picture"


def test_callback(pipe, tiger):
    thread_ids = set()
    image = pipe(PROMPT, seed=1, callback=lambda event: thread_ids.add(threading.get_ident()))
    assert thread_ids == {threading.get_ident()}
    assert np.array_equal(np.asarray(image), tiger)
    with pytest.raises(mdrt.Cancelled):
        pipe(PROMPT, callback=lambda event: event.fraction < 0.3)
    with pytest.raises(ZeroDivisionError):
        pipe(PROMPT, callback=lambda event: 1 / 0)
    assert np.array_equal(np.asarray(pipe(PROMPT, seed=1)), tiger)


def test_cancel_from_another_thread(pipe, tiger):
    for delay in (0.0, 0.02, 0.1):
        started = threading.Event()

        def cancel(started=started, delay=delay):
            started.wait()
            time.sleep(delay)
            pipe.cancel()

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(mdrt.Cancelled):
            pipe(
                [PROMPT] * 1000,
                num_inference_steps=20,
                guidance_scale=2,
                callback=lambda event, started=started: started.set(),
            )
        thread.join()
    assert np.array_equal(np.asarray(pipe(PROMPT, seed=1)), tiger)


def test_cancel_without_a_call_has_no_effect(pipe, tiger):
    pipe.cancel()
    assert np.array_equal(np.asarray(pipe(PROMPT, seed=1)), tiger)


def test_interrupt(pipe, tiger):
    def raise_alarm(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, raise_alarm)
    try:
        for seconds in (0.01, 0.05, 0.2):
            signal.setitimer(signal.ITIMER_REAL, seconds)
            begin = time.monotonic()
            with pytest.raises(mdrt.Cancelled) as caught:
                pipe([PROMPT] * 1000, num_inference_steps=20)
            assert isinstance(caught.value, KeyboardInterrupt)
            assert time.monotonic() - begin < seconds + 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert np.array_equal(np.asarray(pipe(PROMPT, seed=1)), tiger)


def test_dropped_stream_frees_the_pipeline(pipe, tiger):
    stream = pipe.stream(PROMPT)
    next(stream)
    with pytest.raises(mdrt.InvalidArgumentError, match="already using the pipeline"):
        pipe(PROMPT)
    stream.close()
    assert np.array_equal(np.asarray(pipe(PROMPT, seed=1)), tiger)


def test_second_caller_waits(pipe, tiger):
    images = {}
    threads = [
        threading.Thread(target=lambda n=n: images.update({n: np.asarray(pipe(PROMPT, seed=1))})) for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(images) == 4 and all(np.array_equal(image, tiger) for image in images.values())


def _picture_in_child(pipe, queue):
    queue.put(np.asarray(pipe(PROMPT, seed=1)).tobytes())


def test_fork(pipe, tiger):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_picture_in_child, args=(pipe, queue))
    child.start()
    assert queue.get(timeout=20) == tiger.tobytes()
    child.join(timeout=20)
    assert child.exitcode == 0


def _refused_in_child(pipe, session, queue):
    for call in (lambda: pipe(PROMPT), lambda: session.run(latent_sample=np.zeros((1, 8, 2, 2), np.float32))):
        try:
            call()
            queue.put("done")
        except mdrt.Error as error:
            queue.put(str(error))


def test_fork_while_in_use(pipe, tiger):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    session = mdrt.Session(pipe.path, "vae_decoder")
    stop = threading.Event()

    def decode():
        while not stop.is_set():
            session.run(latent_sample=np.zeros((4, 8, 16, 16), np.float32))

    def generate():
        with pytest.raises(mdrt.Cancelled):
            pipe([PROMPT] * 1000, num_inference_steps=20)

    threads = [threading.Thread(target=decode), threading.Thread(target=generate)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    child = context.Process(target=_refused_in_child, args=(pipe, session, queue))
    child.start()
    assert "forked" in queue.get(timeout=20)
    answer = queue.get(timeout=20)  # the fork may have hit the session between two runs
    assert answer == "done" or "forked" in answer
    child.join(timeout=20)
    assert child.exitcode == 0
    stop.set()
    pipe.cancel()
    for thread in threads:
        thread.join()
    assert np.array_equal(np.asarray(pipe(PROMPT, seed=1)), tiger)


def test_close():
    with mdrt.Pipeline() as closing:
        pass
    with pytest.raises(mdrt.InvalidArgumentError, match="closed"):
        closing(PROMPT)
    closing.close()
    closing.cancel()


def test_memory_limit():
    with mdrt.Pipeline(max_memory=100_000) as small, pytest.raises(mdrt.MemoryLimitError):
        small(PROMPT)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"threads": 1.5}, {"max_memory": -1}, {"max_memory": "1G"}], ids=str)
def test_wrong_options(wrong):
    with pytest.raises(mdrt.InvalidArgumentError, match=next(iter(wrong))):
        mdrt.Pipeline(**wrong)


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(mdrt.FileError) as caught:
        mdrt.Pipeline(tmp_path / "nothing.mdrt")
    assert isinstance(caught.value, OSError)
    (tmp_path / "empty.mdrt").write_bytes(b"")
    with pytest.raises(mdrt.BundleError):
        mdrt.Pipeline(tmp_path / "empty.mdrt")
    with pytest.raises(mdrt.FileError):
        mdrt.Pipeline(tmp_path)


def test_unicode_path(tmp_path):
    from mdrt import models

    path = tmp_path / "模型 é.mdrt"
    path.symlink_to(models.builtin_path())
    with mdrt.Pipeline(path) as opened:
        assert opened(PROMPT).size == (128, 128)
