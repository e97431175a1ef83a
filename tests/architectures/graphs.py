"""Graphs, molecules and knowledge: what runs along edges."""

from __future__ import annotations

import torch

from tests.architectures.describe import Architecture, Inputs, Settings, both, counts, floats, given, made, noise

# Eight nodes in a ring, each tied to the next and back.
RING = torch.stack([torch.arange(8), (torch.arange(8) + 1) % 8])
EDGES = torch.cat([RING, RING.flip(0)], 1)
ONE = given(batch=torch.zeros(8, dtype=torch.long))
SIZES: Settings = {"in_channels": 8, "hidden_channels": 16, "out_channels": 4}
BASIC: Settings = {**SIZES, "num_layers": 2, "dropout": 0.5}


def graph() -> Inputs:
    """A graph with a vector at each node."""
    return {"x": noise(8, 8), "edge_index": EDGES}


def market() -> Inputs:
    """A graph of users and items."""
    return {
        "x_dict": {"user": noise(8, 8), "item": noise(8, 8)},
        "edge_index_dict": {("user", "buys", "item"): EDGES, ("item", "pleases", "user"): RING},
    }


def cloud() -> Inputs:
    """Six points in space."""
    return {"data": {"pos": noise(6, 3), "x": noise(6, 4), "batch": torch.zeros(6, dtype=torch.long)}}


# Formatted, most rows would take a line per setting, and the table would no longer read as one.
# fmt: off
GRAPHS: tuple[Architecture, ...] = (
    made("ar-link", "torch_geometric.nn:ARLinkPredictor", graph, in_channels=8, hidden_channels=16, out_channels=4,
        dropout=0.5),
    made("attentive-fp", "torch_geometric.nn:AttentiveFP", both(graph, floats(edge_attr=(16, 4)), ONE), **SIZES,
        edge_dim=4, num_layers=2, num_timesteps=2, dropout=0.5),
    made("e3nn-network", "e3nn.nn.models.v2106.gate_points_networks:SimpleNetwork", cloud, irreps_in="4x0e",
        irreps_out="1x0e+1x1o", max_radius=2.0, num_neighbors=3.0, num_nodes=6.0, mul=4, layers=2, lmax=1),
    made("edge-cnn", "torch_geometric.nn:EdgeCNN", graph, **BASIC, norm="batch_norm"),
    made("gatv2", "torch_geometric.nn:GAT", graph, **BASIC, v2=True, jk="lstm"),
    made("gcn-cached", "torch_geometric.nn:GCN", graph, **BASIC, cached=True),
    made("gin", "torch_geometric.nn:GIN", graph, **BASIC, norm="batch_norm", jk="cat"),
    made("gps", "torch_geometric.nn:GPSConv", both(graph, ONE), channels=8, conv=None, heads=2, dropout=0.5),
    made("graph-unet", "torch_geometric.nn:GraphUNet", graph, **SIZES, depth=2),
    made("graphsage", "torch_geometric.nn:GraphSAGE", graph, **BASIC, norm="pair_norm"),
    made("hgt", "torch_geometric.nn:HGTConv", market, in_channels=8, out_channels=8, heads=2,
        metadata=(["user", "item"], [("user", "buys", "item"), ("item", "pleases", "user")])),
    made("lightgcn", "torch_geometric.nn:LightGCN", given(edge_index=EDGES), num_nodes=8, embedding_dim=8,
        num_layers=2),
    made("linkx", "torch_geometric.nn:LINKX", graph, num_nodes=8, **BASIC),
    made("neural-fingerprint", "torch_geometric.nn:NeuralFingerprint", both(graph, ONE), **SIZES, num_layers=2),
    made("pmlp", "torch_geometric.nn:PMLP", graph, **BASIC),
    made("pna", "torch_geometric.nn:PNA", graph, **BASIC, aggregators=["mean", "max", "std"],
        scalers=["identity", "amplification"], deg=torch.tensor([0, 0, 8])),
    made("polynormer", "torch_geometric.nn:Polynormer", both(graph, ONE), **SIZES, local_layers=2),
    made("rgcn", "torch_geometric.nn:RGCNConv", both(graph, counts(3, edge_type=(16,))), in_channels=8, out_channels=4,
        num_relations=3, num_bases=2),
    made("sgformer", "torch_geometric.nn:SGFormer", both(graph, ONE), **SIZES),
    made("signed-gcn", "torch_geometric.nn:SignedGCN",
        both(floats(x=(8, 8)), given(pos_edge_index=EDGES, neg_edge_index=EDGES[:, :4])), in_channels=8,
        hidden_channels=16, num_layers=2),
    made("transformer-conv", "torch_geometric.nn:TransformerConv", both(graph, floats(edge_attr=(16, 4))),
        in_channels=8, out_channels=4, heads=2, edge_dim=4, beta=True, dropout=0.5),
)
# fmt: on
