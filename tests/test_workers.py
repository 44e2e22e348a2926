# SPDX-License-Identifier: Apache-2.0
"""The threads of inference: where they run, and what outlives what."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import mxnet as mx
import numpy as np
import pytest
from draw import draw_images

from gluon_resnet import bundled, cpu, inference_form, init_model
from gluon_resnet.inference import form as forms
from gluon_resnet.inference.workers import Workers

CPUS = sorted(cpu.allowed_cpus())
needs_two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="has one CPU")


@pytest.fixture(scope="module")
def model():
    return init_model(bundled.NAME)


def never():
    raise AssertionError("was cancelled")


def test_tasks_run_in_the_threads_and_all_have_ended():
    workers = Workers([[], []])
    found = []
    for _ in range(3):
        workers.run([lambda: found.append(threading.get_ident())] * 5, cancel=never)
    assert len(found) == 15 and threading.get_ident() not in found
    assert len(set(found)) <= 2


def test_an_error_reaches_the_caller_when_the_others_have_ended():
    workers = Workers([[], []])
    ended = []

    def long():
        time.sleep(0.1)
        ended.append("long")

    with pytest.raises(ZeroDivisionError):
        workers.run([lambda: 1 / 0, long], cancel=lambda: ended.append("cancelled"))
    assert sorted(ended) == ["cancelled", "long"]
    workers.run([lambda: ended.append("again")], cancel=never)
    assert ended[-1] == "again"


def test_threads_end_with_the_last_reference():
    before = threading.enumerate()
    workers = Workers([[], []])
    workers.run([lambda: None], cancel=never)
    threads = [t for t in threading.enumerate() if t not in before]
    assert len(threads) == 2
    del workers
    gc.collect()
    wait_for(lambda: not any(thread.is_alive() for thread in threads))


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def masks(places):
    """Where the threads may run that have these places."""
    workers = Workers(places)
    found, both = [], threading.Barrier(len(places))

    def tell():
        found.append(sorted(os.sched_getaffinity(0)))
        both.wait(30)

    workers.run([tell] * len(places), cancel=never)
    return sorted(found)


@needs_two_cpus
def test_threads_stay_at_their_places_and_the_caller_where_it_is():
    assert masks([CPUS[:1], CPUS[1:]]) == [CPUS[:1], CPUS[1:]]
    assert sorted(os.sched_getaffinity(0)) == CPUS


def test_a_place_that_is_gone_is_left_alone():
    assert masks([[10**5], CPUS[:1]]) == sorted([CPUS, CPUS[:1]])


@needs_two_cpus
def test_an_affinity_that_was_set_after_the_import_is_kept(model):
    images = mx.nd.array(draw_images((4, 3, 28, 28)))
    expected = model.forward(images).asnumpy()
    before = threading.enumerate()
    os.sched_setaffinity(0, CPUS[1:2])
    try:
        form = inference_form(model.net)
        logits = form(images).asnumpy()
    finally:
        os.sched_setaffinity(0, CPUS)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    workers = [t for t in threading.enumerate() if t not in before]
    assert len(workers) == 1
    assert os.sched_getaffinity(workers[0].native_id) == set(CPUS[1:2])


def topology(folder, siblings):
    for number, text in enumerate(siblings):
        (folder / f"cpu{number}" / "topology").mkdir(parents=True)
        path = folder / f"cpu{number}" / "topology" / "thread_siblings_list"
        path.write_text(f"{text}\n")
    return folder


def test_each_thread_has_cores_of_its_own(tmp_path):
    # As Linux numbers two threads of a core, one after the other or all cores first.
    pairs = topology(tmp_path / "pairs", ["0-1", "0-1", "2-3", "2-3"])
    halves = topology(tmp_path / "halves", ["0,2", "1,3", "0,2", "1,3"])
    assert cpu.places({0, 1, 2, 3}, 2, pairs) == [[0, 1], [2, 3]]
    assert cpu.places({0, 1, 2, 3}, 2, halves) == [[0, 2], [1, 3]]
    assert cpu.places({0, 1, 2, 3}, 1, pairs) == [[0, 1, 2, 3]]
    assert cpu.places({1, 2, 3}, 2, pairs) == [[1], [2, 3]]
    assert cpu.places({0, 1, 2, 3}, 3, pairs) == [[0, 1], [2, 3], [0, 1]]


def test_forms_on_several_threads_answer_as_one_does(model):
    nets = [model.net, model.net]
    batches = [mx.nd.array(draw_images((n, 3, 28, 28))) for n in (1, 4, 2, 5)]
    expected = [model.forward(images).asnumpy() for images in batches]

    def answers(net):
        form = inference_form(net)
        return [form(images).asnumpy() for images in batches * 5]

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(answers, nets):
            for logits, wanted in zip(found, expected * 5):
                np.testing.assert_array_equal(logits, wanted)


def in_child(task):
    """What a forked process answers; None where it has none after a while."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(task()))
    process.start()
    try:
        return receiver.recv() if receiver.poll(30) else None
    finally:
        process.kill()
        process.join()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("warm", [1, 4])
@pytest.mark.parametrize("count", [1, 4, 5])
def test_a_form_works_in_a_forked_process(model, warm, count):
    form = inference_form(model.net)
    form(mx.nd.array(draw_images((warm, 3, 28, 28))))
    images = mx.nd.array(draw_images((count, 3, 28, 28)))
    expected = form(images).asnumpy()

    def answer():
        found = []
        thread = threading.Thread(
            target=lambda: found.append(form(images).asnumpy()), daemon=True
        )
        first = form(images).asnumpy()
        thread.start()
        thread.join()
        return [first, *found, inference_form(model.net)(images).asnumpy()]

    found = in_child(answer)
    assert found is not None, "the child hangs"
    assert len(found) == 3
    for logits in found:
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(form(images).asnumpy(), expected)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_waits_until_no_thread_plans(model):
    form = inference_form(model.net)
    images = mx.nd.array(draw_images((2, 3, 28, 28)))
    batches = [mx.nd.zeros((2, 3, size, size)) for size in range(28, 60, 4)]
    mx.nd.waitall()  # MXNet itself stops for ever where a fork meets its own operators.
    planned = []

    def plan():
        for batch in batches:
            form(batch)
            planned.append(batch)

    thread = threading.Thread(target=plan)
    thread.start()
    for _ in range(3):
        assert in_child(lambda: form(images).shape) == (2, 10)
    thread.join()
    assert len(planned) == 8


def python(code, **options):
    environment = {**os.environ, "PYTHONPATH": "."}
    command = [sys.executable, "-c", "import gluon_resnet\n" + code]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, **options
    )


def test_calls_that_are_interrupted_leave_right_answers():
    code = """
import random, signal, time
import mxnet as mx, numpy as np
from gluon_resnet import create_model, inference_form

def interrupt(*_):
    raise KeyboardInterrupt

draw = random.Random(0)
form = inference_form(create_model("cifar_resnet20_v1"))
images = {n: mx.nd.random.normal(shape=(n, 3, 32, 32)) for n in (1, 2, 5, 16)}
right = {n: form(x).asnumpy() for n, x in images.items()}
started = time.perf_counter()
form(images[16])
seconds = time.perf_counter() - started
signal.signal(signal.SIGALRM, interrupt)
caught = 0
for _ in range(100):
    try:
        late = draw.random() * seconds
        signal.setitimer(signal.ITIMER_REAL, late + 1e-5)
        for _ in range(20):
            form(images[draw.choice([1, 2, 5, 16])])
        time.sleep(1)
    except KeyboardInterrupt:
        caught += 1
    assert not form._workers.are_busy
    count = draw.choice([1, 2, 5, 16])
    assert (form(images[count]).asnumpy() == right[count]).all()
print(caught)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    # Those that come while MXNet frees an array are lost, which Python tells of.
    assert int(done.stdout) + done.stderr.count("Exception ignored in") == 100


def test_a_call_ends_when_its_parts_have_ended():
    workers = Workers([[], []])
    parts = list(range(1000))
    at_work = []

    def work():
        while parts:
            at_work.append(parts.pop())
            time.sleep(0.05)
            at_work.pop()

    def interrupt(*_):
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    # A second one, and many more, while the call waits for what is at work.
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.005)
    try:
        with pytest.raises(KeyboardInterrupt):
            try:
                workers.run([work, work], cancel=parts.clear)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert not parts and not at_work and not workers.are_busy


@pytest.mark.parametrize("is_daemon", [True, False])
def test_the_interpreter_may_end_while_a_thread_calls(is_daemon):
    code = f"""
import threading, time
import mxnet as mx
from gluon_resnet import create_model, inference_form

form = inference_form(create_model("cifar_resnet20_v1"))
batches = [mx.nd.random.normal(shape=(n, 3, 32, 32)) for n in (1, 16, 17)]
counted = []

def call():
    while {is_daemon} or len(counted) < 200:
        counted.append([form(images) for images in batches])
    print(len(counted))

threading.Thread(target=call, daemon={is_daemon}).start()
while len(counted) < 20:
    time.sleep(0.01)
"""
    done = python(code)
    expected = "" if is_daemon else "200\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_workers_do_not_hold_what_they_have_computed(model):
    form = inference_form(model.net)
    form(mx.nd.array(draw_images((4, 3, 28, 28))))
    held = []

    class Held:
        def __del__(self):
            held.append(True)

    form._workers.run([partial(lambda _: None, Held())], cancel=never)
    gc.collect()
    wait_for(lambda: held)


def test_parts_are_as_large_as_they_may_be_but_the_last():
    pixels = 2 * 224 * 224

    def sizes(count, workers, threads=2):
        shape = (count, 3, 224, 224)
        division = forms._divided(shape, pixels, workers, threads)
        for parts in (division.shared, division.own):
            firsts = [part.first for part in parts]
            assert firsts == sorted(firsts)
        ends = [
            part.first + part.group.shape[0]
            for part in (*division.shared, *division.own)
        ]
        assert not count or ends[-1] == count
        return tuple(
            [part.group.shape[0] for part in parts]
            for parts in (division.shared, division.own)
        )

    assert sizes(16, workers=2) == ([2] * 8, [])
    assert sizes(10, workers=2) == ([2, 2, 2, 2, 1, 1], [])
    assert sizes(11, workers=2) == ([2, 2, 2, 2, 1, 1], [1])
    assert sizes(26, workers=2) == ([2] * 12 + [1] * 2, [])
    assert sizes(1, workers=2) == ([], [1])
    assert sizes(5, workers=0) == ([], [2, 2, 1])
    # After a fork nothing is left to OpenMP.
    assert sizes(5, workers=2, threads=None) == ([2, 2, 1], [])
    assert sizes(1, workers=2, threads=None) == ([1], [])
    assert sizes(0, workers=2) == ([], [])
