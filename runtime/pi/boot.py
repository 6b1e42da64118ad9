"""Boots an emulated Raspberry Pi B+ (raspi1ap: BCM2835, 512 MB) and lets mednca-run make a mask on it.

    python runtime/pi/boot.py MODEL.safetensors SCAN.nii

prints what the machine says. Needs qemu-system-arm, gcc-arm-linux-gnueabi, make and Debian's package server,
from which the kernel for the Pi comes (into runtime/c/build/kernel, once). Ends with an error where the
machine does not say DONE within ten minutes.
"""

from __future__ import annotations

import argparse
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from mednca.modelfile import load_model

PI, C = Path(__file__).resolve().parent, Path(__file__).resolve().parents[1] / "c"
KERNEL = C / "build" / "kernel"
#: qemu lacks the power block that these two would wait for.
ARGUMENTS = (
    "console=ttyAMA0 rdinit=/init quiet initcall_blacklist=bcm2835_pm_driver_init,bcm2835_power_driver_init"
)
LIMIT = 600.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("scan", type=Path)
    arguments = parser.parse_args()
    for program, package in {
        "qemu-system-arm": "qemu-system-arm",
        "arm-linux-gnueabi-gcc": "gcc-arm-linux-gnueabi libc6-dev-armel-cross",
        "make": "make",
    }.items():
        if not shutil.which(program):
            sys.exit(f"boot.py: needs {program}: apt-get install {package}")
    print(boot(arguments.model, arguments.scan), end="")


def boot(model: Path, scan: Path) -> str:
    """Model and scan (.nii) -> everything that the machine said, up to DONE.

    Raises:
        RuntimeError: If the kernel cannot be had, or DONE does not come.
    """
    kernel, tree = kernel_files()
    subprocess.run(["make", "-s", "-C", str(C), "build/armv6/mednca-run"], check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        init = folder / "init"
        flags = ["-O2", "-march=armv6", "-marm", "-mfpu=vfp", "-mfloat-abi=softfp", "-static", "-s"]
        subprocess.run(["arm-linux-gnueabi-gcc", *flags, str(PI / "init.c"), "-o", str(init)], check=True)
        files = {"init": init, "mednca-run": C / "build/armv6/mednca-run", "model.safetensors": model}
        steps = folder / "steps"  # of a benchmark: one in each level
        steps.write_text(",".join("1" for _ in load_model(model).config.model.scales) + "\n")
        (folder / "disk").write_bytes(archive(files | {"scan.nii": scan, "steps": steps}))
        words = ["qemu-system-arm", "-M", "raspi1ap", "-m", "512", "-kernel", str(kernel), "-dtb", str(tree)]
        words += ["-initrd", str(folder / "disk"), "-append", ARGUMENTS]
        words += ["-serial", "stdio", "-display", "none", "-monitor", "none", "-no-reboot"]
        return watch(words)


def watch(words: list[str]) -> str:
    """Command -> its output up to the line DONE; then it is ended, as the machine halts but does not quit."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    said, end = "", time.monotonic() + LIMIT
    try:
        while "DONE" not in said.splitlines()[-1:]:
            if process.poll() is not None and lines.empty():
                raise RuntimeError(f"the machine stopped before it said DONE:\n{said}")
            if time.monotonic() > end:
                raise RuntimeError(f"the machine did not say DONE within {LIMIT:.0f} s:\n{said}")
            try:
                said += lines.get(timeout=1)
            except queue.Empty:
                continue
    finally:
        process.kill()
        process.wait()
        reader.join(10)
        assert process.stdout is not None
        process.stdout.close()
    return said


def kernel_files() -> tuple[Path, Path]:
    """Kernel and device tree of Debian for the Pi, fetched where they are not there yet."""
    if not list(KERNEL.glob("boot/vmlinuz-*")):
        fetch = ["sh", str(C / "fetch.sh"), "armel", "^linux-image-[0-9].*-rpi$", str(KERNEL)]
        done = subprocess.run(fetch, capture_output=True, text=True, check=False)
        if done.returncode or not list(KERNEL.glob("boot/vmlinuz-*")):
            raise RuntimeError(f"Debian's kernel for the Pi cannot be had: {done.stderr.strip()}")
    return next(KERNEL.glob("boot/vmlinuz-*")), next(KERNEL.rglob("bcm2835-rpi-b-plus.dtb"))


def archive(files: dict[str, Path]) -> bytes:
    """Name -> file: all of them as an initial ramdisk (cpio, "newc"), with a console."""
    out = b""
    entries = [("dev", 0o040755, b"", 0), ("dev/console", 0o020600, b"", 1)]
    entries += [(name, 0o100755, path.read_bytes(), 0) for name, path in files.items()]
    for number, (name, mode, content, console) in enumerate([*entries, ("TRAILER!!!", 0, b"", 0)], 1):
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 5 * console, console, len(name) + 1, 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
    return out


if __name__ == "__main__":
    main()
