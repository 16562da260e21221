from __future__ import annotations

from conftest import only_error_line


def test_the_table_of_networks(script):
    done = script("benchmark.py", "--encoders", "mobilenetv2_paper,resnet18", "--size", "160x120", "--repeats", 1)
    assert done.returncode == 0, done.stderr
    assert "| `mobilenetv2_paper` | 3,070,057 |" in done.stdout and "| `resnet18` | 12,501,353 |" in done.stdout
    assert "160x120" in done.stdout and "torch" in done.stdout


def test_training_steps(script):
    options = ["--encoders", "mobilenetv2_100", "--size", "64x48", "--repeats", 1, "--batch_size", 2, "--device", "cpu"]
    done = script("benchmark.py", "--train", *options)
    assert done.returncode == 0, done.stderr
    assert "| `mobilenetv2_100` | returned |" in done.stdout and "| `mobilenetv2_100` | kept |" in done.stdout


def test_mistakes_get_one_line(script):
    assert "did you mean 'resnet18'?" in only_error_line(script("benchmark.py", "--encoders", "resnet1"))
    assert "size" in only_error_line(script("benchmark.py", "--size", "640"))
