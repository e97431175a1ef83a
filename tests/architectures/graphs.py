"""Graph neural networks."""

from __future__ import annotations

import torch

from tests.architectures.describe import (
    Architecture,
    Inputs,
    Settings,
    fixed,
    floats,
    from_path,
    integers,
    merge,
    noise,
)

# Eight nodes in a ring, with edges in both directions.
RING = torch.stack([torch.arange(8), (torch.arange(8) + 1) % 8])
EDGES = torch.cat([RING, RING.flip(0)], 1)
ONE = fixed(batch=torch.zeros(8, dtype=torch.long))
SIZES: Settings = {"in_channels": 8, "hidden_channels": 16, "out_channels": 4}
BASIC: Settings = {**SIZES, "num_layers": 2, "dropout": 0.5}


def graph() -> Inputs:
    """Return a graph with a vector at each node."""
    return {"x": noise(8, 8), "edge_index": EDGES}


def market() -> Inputs:
    """Return a graph of users and items."""
    return {
        "x_dict": {"user": noise(8, 8), "item": noise(8, 8)},
        "edge_index_dict": {("user", "buys", "item"): EDGES, ("item", "pleases", "user"): RING},
    }


def cloud() -> Inputs:
    """Return six points in space."""
    return {"data": {"pos": noise(6, 3), "x": noise(6, 4), "batch": torch.zeros(6, dtype=torch.long)}}


# The formatter would put each setting on its own line, and the table would be unreadable.
# fmt: off
GRAPHS: tuple[Architecture, ...] = (
    from_path("ar-link", "torch_geometric.nn:ARLinkPredictor", graph, in_channels=8, hidden_channels=16, out_channels=4,
        dropout=0.5),
    from_path("attentive-fp", "torch_geometric.nn:AttentiveFP", merge(graph, floats(edge_attr=(16, 4)), ONE), **SIZES,
        edge_dim=4, num_layers=2, num_timesteps=2, dropout=0.5),
    from_path("e3nn-network", "e3nn.nn.models.v2106.gate_points_networks:SimpleNetwork", cloud, irreps_in="4x0e",
        irreps_out="1x0e+1x1o", max_radius=2.0, num_neighbors=3.0, num_nodes=6.0, mul=4, layers=2, lmax=1),
    from_path("edge-cnn", "torch_geometric.nn:EdgeCNN", graph, **BASIC, norm="batch_norm"),
    from_path("gatv2", "torch_geometric.nn:GAT", graph, **BASIC, v2=True, jk="lstm"),
    from_path("gcn-cached", "torch_geometric.nn:GCN", graph, **BASIC, cached=True),
    from_path("gin", "torch_geometric.nn:GIN", graph, **BASIC, norm="batch_norm", jk="cat"),
    from_path("gps", "torch_geometric.nn:GPSConv", merge(graph, ONE), channels=8, conv=None, heads=2, dropout=0.5),
    from_path("graph-unet", "torch_geometric.nn:GraphUNet", graph, **SIZES, depth=2),
    from_path("graphsage", "torch_geometric.nn:GraphSAGE", graph, **BASIC, norm="pair_norm"),
    from_path("hgt", "torch_geometric.nn:HGTConv", market, in_channels=8, out_channels=8, heads=2,
        metadata=(["user", "item"], [("user", "buys", "item"), ("item", "pleases", "user")])),
    from_path("lightgcn", "torch_geometric.nn:LightGCN", fixed(edge_index=EDGES), num_nodes=8, embedding_dim=8,
        num_layers=2),
    from_path("linkx", "torch_geometric.nn:LINKX", graph, num_nodes=8, **BASIC),
    from_path("neural-fingerprint", "torch_geometric.nn:NeuralFingerprint", merge(graph, ONE), **SIZES, num_layers=2),
    from_path("pmlp", "torch_geometric.nn:PMLP", graph, **BASIC),
    from_path("pna", "torch_geometric.nn:PNA", graph, **BASIC, aggregators=["mean", "max", "std"],
        scalers=["identity", "amplification"], deg=torch.tensor([0, 0, 8])),
    from_path("polynormer", "torch_geometric.nn:Polynormer", merge(graph, ONE), **SIZES, local_layers=2),
    from_path("rgcn", "torch_geometric.nn:RGCNConv", merge(graph, integers(3, edge_type=(16,))), in_channels=8,
        out_channels=4, num_relations=3, num_bases=2),
    from_path("sgformer", "torch_geometric.nn:SGFormer", merge(graph, ONE), **SIZES),
    from_path("signed-gcn", "torch_geometric.nn:SignedGCN",
        merge(floats(x=(8, 8)), fixed(pos_edge_index=EDGES, neg_edge_index=EDGES[:, :4])), in_channels=8,
        hidden_channels=16, num_layers=2),
    from_path("transformer-conv", "torch_geometric.nn:TransformerConv", merge(graph, floats(edge_attr=(16, 4))),
        in_channels=8, out_channels=4, heads=2, edge_dim=4, beta=True, dropout=0.5),
)
# fmt: on
