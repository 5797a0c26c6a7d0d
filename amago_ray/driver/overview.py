"""What a run says before it starts: which processes go where, and the memory that they need."""

from __future__ import annotations

from amago_ray.cuda_graphs import is_known
from amago_ray.driver.placement import Cluster, Placement, amount, table
from amago_ray.driver.plan import Plan, longest_piece, stagger
from amago_ray.nets.transformer import Transformer
from amago_ray.settings import ExperimentSettings
from amago_ray.specs import row_bytes


def overview(settings: ExperimentSettings, plan: Plan, placement: Placement, cluster: Cluster) -> str:
    """What will run where, and the memory that it needs: shown before anything starts."""
    x, spec = settings, plan.agent_spec
    agent = spec.build()
    weights, acting = (sum(p.nbytes for p in module.parameters()) for module in (agent, agent.policy))
    trained = sum(p.nbytes for p in agent.parameters() if p.requires_grad)
    per_request, in_flight = plan.request_size
    store = plan.replay.store
    place = f"in files below {store.folder}" if store.folder is not None else "in the memory of the shards"
    row, longest = row_bytes(spec.obs_spec, spec.action_spec), longest_piece(x) + stagger(x)
    said = {
        "observations": agent.policy.tstep_encoder.description,
        "cores": plan.cores.in_words,
        "workers": f"{amount(row * x.parallel_actors * 1000)} for every 1,000 timesteps of unfinished rollouts; "
        f"{amount(row * x.parallel_actors * longest)} if all of them get to traj_save_len={longest:,}",
        "replay": f"up to {amount(x.replay_capacity_gb * 1e9)} {place}",
        "batches": f"{amount(plan.batch_bytes)} each, up to {per_request * in_flight} ahead of each learner",
        "agent": f"{amount(weights + 3 * trained)} per learner, besides what a batch needs: {trained // 4:,} "
        "parameters with their gradients, moments and targets",
        "weights": f"{amount(acting)} to every node with rollout workers at each publication",
    }
    compile_acting = {config.compile_acting for config in plan.rollout}
    if "always" in compile_acting or ("auto" in compile_acting and all(map(is_known, agent.policy.modules()))):
        said["acting"] = (
            "workers compile the policy's step before they begin, which takes 10 to 30 s for the first on each machine "
            "and 100 to 250 MB of each one's memory"
        )
    transformers = [module for module in agent.modules() if isinstance(module, Transformer)]
    packed_alone = plan.learner.compile == "packed"
    compiled = [x for x in transformers if plan.learner.compile and (x.could_attend_packed or not packed_alone)]
    if compiled:
        said["learning"] = (
            "learners compile the layers of Transformers, which takes 10 to 20 s at the first batch, or at the first "
            "of each of at most eight lengths where batches are padded"
        )
    num_nodes = "this machine" if cluster.local else f"{len(cluster.nodes)} node{'s' * (len(cluster.nodes) != 1)}"
    return table(f"{x.run_name} on {num_nodes}, as planned:", placement, said)
