"""What Kaldi's own code makes of H and self-loops; ``python make.py`` writes golden.json beside it.

Needs kaldi-hmm-gmm 1.1.4 with kaldifst 1.7.17, in an environment of their own: with newer kaldifst the two do not work
together. They are Kaldi's GetHTransducer and AddSelfLoops in a Python package.
"""

import json
import tempfile
from pathlib import Path

import kaldi_hmm_gmm as kaldi
import kaldifst

TOPOLOGY = """<Topology>
<TopologyEntry>
<ForPhones> 1 2 </ForPhones>
<State> 0 <ForwardPdfClass> 0 <SelfLoopPdfClass> 1 <Transition> 0 0.4 <Transition> 1 0.6 </State>
<State> 1 </State>
</TopologyEntry>
<TopologyEntry>
<ForPhones> 3 </ForPhones>
<State> 0 <PdfClass> 0 <Transition> 0 0.75 <Transition> 1 0.25 </State>
<State> 1 <PdfClass> 1 <Transition> 1 0.6 <Transition> 2 0.3 <Transition> 3 0.1 </State>
<State> 2 <PdfClass> 2 <Transition> 2 0.75 <Transition> 3 0.25 </State>
<State> 3 </State>
</TopologyEntry>
<TopologyEntry>
<ForPhones> 4 </ForPhones>
<State> 0 <PdfClass> 0 <Transition> 0 0.25 <Transition> 1 0.5 <Transition> 2 0.25 </State>
<State> 1 <PdfClass> 1 <Transition> 1 0.4 <Transition> 2 0.4 <Transition> 3 0.2 </State>
<State> 2 <PdfClass> 2 <Transition> 1 0.3 <Transition> 2 0.4 <Transition> 3 0.3 </State>
<State> 3 <PdfClass> 3 <Transition> 3 0.7 <Transition> 4 0.3 </State>
<State> 4 </State>
</TopologyEntry>
</Topology>
"""
WINDOWS = [[], [1], [2], [3], [4], [0], [-7]]
# State, input, output, cost, next state; a line of two ends a sentence. Several transitions meet in states 1 and 2.
GRAPH = """0 1 2 3 0.5
0 1 4 0 1.0
0 2 0 5 0.25
1 1 6 1 0.125
1 2 0 0 0
1 2 2 0 0.75
2 0 14 2 2
2 1
"""


def rows(fst: kaldifst.StdVectorFst) -> dict:
    """Arcs and final costs."""
    states = list(kaldifst.StateIterator(fst))
    arcs = [(s, a.ilabel, a.olabel, a.weight.value, a.nextstate) for s in states for a in kaldifst.ArcIterator(fst, s)]
    finals = {s: fst.final(s).value for s in states if fst.final(s).value < float("inf")}
    return {"start": fst.start, "arcs": arcs, "finals": finals}


def main() -> None:
    """Make everything."""
    topology = kaldi.HmmTopology()
    topology.read(TOPOLOGY)
    classes = [-1, 2, 2, 3, 4]
    tree = kaldi.monophone_context_dependency([1, 2, 3, 4], classes)
    model = kaldi.TransitionModel(tree, topology)
    h, symbols = kaldi.get_h_transducer(WINDOWS, tree, model, kaldi.HTransducerConfig(0.7))
    graph = kaldifst.compile(GRAPH)
    looped = kaldi.add_self_loops(0.3, [], True, model, graph)
    trees = {}
    with tempfile.TemporaryDirectory() as folder:
        for binary in (True, False):
            path = Path(folder) / "tree"
            tree.write(binary, str(path))
            trees["binary" if binary else "text"] = path.read_bytes().hex()
    found = {
        "topology": TOPOLOGY,
        "log_probs": [float(p) for p in model.log_probs],
        "pdfs": [[tree.compute([phone], k)[1] for k in range(classes[phone])] for phone in (1, 2, 3, 4)],
        "trees": trees,
        "windows": WINDOWS,
        "symbols": symbols,
        "h": rows(h),
        "graph": GRAPH,
        "looped": rows(looped),
    }
    Path(__file__).with_name("golden.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
