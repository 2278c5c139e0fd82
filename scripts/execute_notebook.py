"""Executes a notebook and shows what its cells print while they run.

    python scripts/execute_notebook.py notebooks/01_growing_with_gradients.ipynb out/01.ipynb

The notebook's working folder is the current one. What was executed is written even when a cell
fails, so that the failure can be looked at.
"""

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from nca_helpers.files import replace_file


class FollowedClient(NotebookClient):
    """A notebook client that repeats every text output on the terminal."""

    def process_message(self, msg, cell, cell_index):
        """Repeats what a cell prints, and goes on as usual."""
        if msg["msg_type"] == "stream":
            print(msg["content"]["text"], end="", flush=True)
        return super().process_message(msg, cell, cell_index)


def join_streams(notebook: nbformat.NotebookNode) -> None:
    """Joins neighbouring text outputs of one stream, and drops what a run leaves in metadata."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs = []
        for output in cell.get("outputs", []):
            is_stream = output.output_type == "stream"
            if is_stream and outputs and outputs[-1].get("name") == output.name:
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        if cell.cell_type == "code":
            cell.outputs = outputs


def execute(notebook: nbformat.NotebookNode, target: Path, folder: Path = Path()) -> None:
    """Executes a notebook in a working folder and writes it to `target`, whole or not at all.

    Raises:
        CellExecutionError: A cell failed; the notebook is written all the same.
        DeadKernelError: So it is when the kernel was killed.
    """
    client = FollowedClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        # Silences the kernel's own warnings, that its sockets are not encrypted for one.
        extra_arguments=["--log-level=ERROR"],
    )
    try:
        client.execute()
    finally:
        join_streams(notebook)
        replace_file(target, f"{nbformat.writes(notebook)}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="notebook to execute")
    parser.add_argument("target", type=Path, help="where to write the executed notebook")
    arguments = parser.parse_args()
    try:
        execute(nbformat.read(arguments.source, as_version=4), arguments.target)
    except (OSError, nbformat.reader.NotJSONError) as error:
        sys.exit(f"{arguments.source}: it cannot be read or written ({error!s:.200})")
    except CellExecutionError as error:
        sys.exit(f"{arguments.source}: a cell failed; see {arguments.target}\n{error}")
    except DeadKernelError:
        sys.exit(
            f"{arguments.source}: its kernel died, killed perhaps because memory ran out; "
            f"{arguments.target} shows how far it came"
        )
    print(f"The executed notebook: {arguments.target}")


if __name__ == "__main__":
    main()
