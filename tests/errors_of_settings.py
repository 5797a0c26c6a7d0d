"""What can be wrong with settings and environments."""

from __future__ import annotations

from error_case import Case, dataset, environment, setting, with_settings, words

# ---------------------------------------------------------------- settings

SETTINGS = (
    setting("a name that nothing has", "TformerTrajEncodr.d_model = 3", "'TformerTrajEncodr'", "did you mean"),
    setting("a parameter that it does not have", "Agent.gama = 0.9", "Agent has no setting 'gama'", "'gamma'"),
    setting("a setting that there is not", "Experiment.batchsize = 3", "'batchsize'", "did you mean 'batch_size'"),
    setting("a setting that nothing reads", "NCritics.num_critics = 3", "sets nothing", "set Agent.num_critics"),
    setting("a line that is not gin", "Experiment.batch_size 3", "line", "'Experiment.batch_size 3'"),
    Case(
        "an option that is not gin",
        words("--config", "CONFIG", "--set", "Agent.gamma = 0.9", "--set", "Experiment.epochs"),
        ("'Experiment.epochs' is not NAME = VALUE",),
    ),
    setting("a bracket that is not closed", "Multigammas.discrete = [0.9, ", "within a bracket", "close it"),
    setting("a macro that there is not", "Agent.gamma = %discount", "no macro is named %discount"),
    Case(
        "a macro that is misspelt",
        with_settings("size = 4", "Experiment.batch_size = %size", "Experiment.epochs = %sise"),
        ("Experiment.epochs = %sise", "no macro is named %sise", "did you mean %size?"),
    ),
    setting("a module that is not there", "import no_such_module", "no_such_module"),
    setting("an include that is not there", "include 'base.gin'", "include 'base.gin'", "there is no such file"),
    Case(
        "a configuration that is not there",
        lambda scene: scene.command("--config", scene.folder / "none.gin"),
        ("--config", "none.gin", "there is no such file"),
    ),
    Case(
        "a configuration that is no text",
        lambda scene: scene.command("--config", scene.file("picture.gin", b"\x89PNG\r\n\x1a\n\xff\xfe")),
        ("picture.gin", "is no text"),
    ),
    Case(
        "an empty configuration",
        lambda scene: scene.command("--config", scene.file("empty.gin")),
        ("lacks Experiment.run_name, Experiment.make_train_env, Experiment.max_seq_len",),
    ),
    setting("a number of 0", "Experiment.batch_size = 0", "Experiment.batch_size=0", "an integer of 1 or more"),
    setting("half an epoch", "Experiment.epochs = 1.5", "Experiment.epochs=1.5", "an integer of 1 or more"),
    setting("a seed that is too large", "Experiment.seed = 5000000000", "seed=5000000000", "4,294,967,295 at most"),
    setting("text for a number", "Experiment.epochs = '10'", "Experiment.epochs='10'", "an integer of 1 or more"),
    setting("a negative rate", "Experiment.learning_rate = -1e-3", "Experiment.learning_rate=-0.001", "above 0"),
    setting("a rate that is not a number", "Experiment.learning_rate = %nan", "learning_rate=nan", "above 0"),
    setting("an endless buffer", "Experiment.replay_capacity_gb = %inf", "replay_capacity_gb=inf", "a number above 0"),
    setting("a share above 1", "Experiment.importance_exponent = 2", "importance_exponent=2", "in [0, 1]"),
    setting("text for yes or no", "Experiment.verbose = 'no'", "Experiment.verbose='no'", "True or False"),
    setting("an unknown choice", "Experiment.schedule = 'alternating'", "schedule='alternating'", "'alternate'"),
    setting(
        "an unknown precision", "Experiment.mixed_precision = 'float16'", "='float16'", "'no', 'bf16', 'fp16', 'auto'"
    ),
    setting("an unknown encoder", "Experiment.traj_encoder_type = 'GRUEncoder'", "'GRUEncoder'", "'GRUTrajEncoder'"),
    setting(
        "an encoder that is called",
        "Experiment.traj_encoder_type = @GRUTrajEncoder()",
        "Experiment.traj_encoder_type = @GRUTrajEncoder()",
        "@GRUTrajEncoder without ()",
    ),
    setting("an encoder of the wrong kind", "Experiment.tstep_encoder_type = @GRUTrajEncoder", "TstepEncoder"),
    setting(
        "a relabeler of the wrong kind", "Experiment.relabeler_type = @Agent", "it must be a subclass of Relabeler"
    ),
    setting(
        "hindsight where there are no goals",
        "Experiment.relabeler_type = @HindsightRelabeler",
        "Experiment.relabeler_type=HindsightRelabeler",
        "'achieved_goal' and a 'desired_goal'",
    ),
    setting("exploration of the wrong kind", "Experiment.exploration_wrapper_type = @Agent", "of ExplorationWrapper"),
    setting("one callback without a list", "Experiment.callbacks = @KeepBestPolicy", "Experiment.callbacks", "a list"),
    setting(
        "a callback without its arguments",
        "Experiment.callbacks = [@StopAtReturn]",
        "Experiment.callbacks: StopAtReturn: ",
        "'threshold'",
    ),
    setting("a dict of numbers for labels", "Experiment.learner_nodes = {'pool': 1}", "learner_nodes", "text to text"),
    setting("a run name with a path", "Experiment.run_name = '../other'", "run_name='../other'", "names a folder"),
    setting("an absolute run name", "Experiment.run_name = '/etc/run'", "run_name='/etc/run'", "names a folder"),
    setting("a run name of two dots", "Experiment.run_name = '..'", "run_name='..'", "names a folder"),
    setting("a run name that is too long", f"Experiment.run_name = '{'n' * 300}'", "run_name=", "at most"),
    setting("a discount of 1", "Agent.gamma = 1.0", "Agent.gamma=1.0", "lies in [0, 1)"),
    setting("a discount that is text", "Agent.gamma = 'high'", "Agent.gamma='high'", "a number", "line"),
    setting("one discount without a list", "Multigammas.discrete = 0.9", "Multigammas.discrete=0.9", "a list or tuple"),
    setting(
        "a layer of negative width",
        "GRUTrajEncoder.d_hidden = -4",
        "GRUTrajEncoder with",
        "d_hidden=-4",
        "must be greater than zero",
    ),
    setting(
        "a layer beyond all memory",
        "FFTstepEncoder.d_hidden = 1000000000000000",
        "FFTstepEncoder with",
        "d_hidden=1000000000000000",
    ),
    setting("more critics in a target than there are", "Agent.num_critics_td = 9", "num_critics_td=9", "num_critics=2"),
    setting("an unknown activation", "Actor.activation = 'rely'", "'rely'", "did you mean 'relu'"),
    setting("an optimiser that is none", "Agent.optimizer_type = @PopArt", "Agent.optimizer_type", "optim"),
    setting("exploration that never anneals", "EpsilonGreedy.steps_anneal = 0", "steps_anneal=0", "at least 1"),
    Case(
        "a model width that heads do not divide",
        with_settings(
            "Experiment.traj_encoder_type = @TformerTrajEncoder",
            "TformerTrajEncoder.d_model = 64",
            "TformerTrajEncoder.n_heads = 7",
        ),
        ("TformerTrajEncoder.d_model=64", "a multiple of n_heads=7"),
    ),
    Case(
        "an image encoder for what is no image",
        with_settings("Experiment.tstep_encoder_type = @CNNTstepEncoder"),
        ("CNNTstepEncoder.obs_key='observation'", "an image"),
    ),
    setting("an option that there is not", "Experiment.max_seq_len = None", "max_seq_len=None", "an integer of 1"),
)

# ---------------------------------------------------------------- lists

LISTS = (
    setting("a pair of three", "Beta.clip_actions_on_log_prob = (0.1, 0.2, 0.3)", "(0.1, 0.2, 0.3)", "(a number, a"),
    setting("names as one text", "Experiment.replay_compression = 'observation'", "='observation'", "list or tuple"),
    setting(
        "a name that no observation has", "Agent.pass_obs_keys_to_actor = ['goal']", "'goal'", "known: observation"
    ),
    setting(
        "observations for an actor that sees none",
        "Agent.pass_obs_keys_to_actor = ['observation']",
        "=['observation']",
        "Actor sees states alone; name an actor_type",
    ),
    Case(
        "two weights for one source",
        dataset(
            "MixtureOfDatasets", "MixtureOfDatasets.sources = (@FineData(),)", "MixtureOfDatasets.weights = (1, 2)"
        ),
        ("MixtureOfDatasets.weights=(1, 2)", "one number of 0 or more for each of the 1 sources"),
    ),
    Case(
        "an anneal of one epoch",
        dataset("MixtureOfDatasets", "MixtureOfDatasets.anneal_epochs = (5,)"),
        ("MixtureOfDatasets.anneal_epochs=(5,)", "(an integer, an integer)"),
    ),
    Case(
        "two channels for three layers",
        with_settings("Experiment.make_train_env = @pictures", "NatureishCNN.channels = [8, 8]"),
        ("NatureishCNN.channels=[8, 8]", "it must be 3 numbers"),
    ),
    setting("a list of no environments", "Experiment.make_train_env = []", "empty list", "at least one environment"),
)

# ---------------------------------------------------------------- contradictions

CONTRADICTIONS = (
    Case(
        "continuous learning from nothing new",
        with_settings("Experiment.schedule = 'continuous'", "Experiment.train_timesteps_per_epoch = 0"),
        ("Experiment.schedule='continuous'", "take 'alternate'"),
    ),
    Case(
        "learning without data",
        with_settings("Experiment.train_timesteps_per_epoch = 0"),
        ("there is nothing to learn from", "Experiment.dataset"),
    ),
    setting("collection that begins after the end", "Experiment.start_collecting_at_epoch = 9", "of epochs=2 collect"),
    setting("learning that begins after the end", "Experiment.start_learning_at_epoch = 9", "nothing is ever learned"),
    setting(
        "an update of more batches than there are", "Experiment.batches_per_update = 999", "nothing is ever learned"
    ),
    Case(
        "a start of learning that never comes",
        with_settings("Experiment.schedule = 'continuous'", "Experiment.replay_min_timesteps = 1000"),
        ("Experiment.replay_min_timesteps=1000", "collects 256"),
    ),
    setting("more workers than environments", "Experiment.num_rollout_workers = 9", "=9", "parallel_actors=4"),
    Case(
        "a choice among data that are not learned from",
        dataset("FineData", "Experiment.replay_sampling = 'recent'"),
        ("Experiment.replay_sampling='recent'", "StoredDataset has a sampling of its own", "'trajectories'"),
    ),
    Case(
        "priorities without critics",
        with_settings(
            "Experiment.replay_sampling = 'prioritized'", "Agent.fake_filter = True", "Agent.online_coeff = 0"
        ),
        ("Experiment.replay_sampling='prioritized'", "critics", "'timesteps'"),
    ),
    Case(
        "an agent that trains nothing",
        with_settings("Agent.fake_filter = True", "Agent.online_coeff = 0", "Agent.offline_coeff = 0"),
        ("Agent.online_coeff=0", "offline_coeff=0", "nothing is trained"),
    ),
    Case(
        "beginning and going on at once", words("--config", "CONFIG", "--resume", "--init-from", "a.pt"), ("leave out",)
    ),
    Case(
        "going on and beginning anew",
        words("--config", "CONFIG", "--resume", "auto", "--overwrite"),
        ("leave out either",),
    ),
    Case("no trials", words("--config", "CONFIG", "--trials", "0"), ("--trials 0", "1 or more")),
)

# ---------------------------------------------------------------- environments

ENVIRONMENTS = (
    environment("an id that does not exist", "'CartPool-v1'", "CartPool"),
    environment("a version that does not exist", "'CartPole-v9'", "CartPole", "v9"),
    environment("an argument that it does not take", "('CartPole-v1', {'lenght': 3})", "CartPole-v1", "lenght"),
    environment("an environment that cannot be built", "@cannot_be_built", "cannot_be_built", "is not installed"),
    environment("something that is no environment", "@no_environment", "gymnasium Env"),
    environment("a number for an environment", "3", "make_env is 3", "gymnasium id"),
    environment("one object for all environments", "@always_the_same", "Counting", "new"),
    environment("a failing reset", "@raises_in_reset", "Sick failed with RuntimeError: no licence"),
    environment("a failing step", "@raises_in_step", "Sick failed with KeyError: 'joint_7'"),
    environment("an observation that is not a number", "@nan_observation", "Sick", "not finite"),
    environment("an observation of another shape", "@observation_of_wrong_shape", "shape (3,)", "(2,)"),
    environment("an infinite reward", "@infinite_reward", "Sick", "reward", "not finite"),
    environment("a reward of three numbers", "@reward_of_wrong_shape", "reward must be one number"),
    environment("observations of text", "@text_observations", "Text", "not supported", "Box"),
    environment("actions of text", "@text_actions", "Text", "not supported", "Box, Discrete"),
    environment("actions without bounds", "@unbounded_actions", "finite bounds", "give low and high"),
    environment("an action space without actions", "@no_actions", "no entries", "nothing to decide"),
    Case(
        "validation in other spaces",
        with_settings("Experiment.make_val_env = @other_actions"),
        ("make_val_env has other spaces than make_train_env",),
    ),
    Case(
        "a list of environments with other spaces",
        with_settings("Experiment.make_train_env = ['CartPole-v1', 'Acrobot-v1']"),
        ("Acrobot", "CartPole"),
    ),
    setting("a mask that is no observation", "Experiment.action_mask_key = 'mask'", "action_mask_key='mask'"),
    Case(
        "a video of what does not render",
        with_settings("Experiment.make_train_env = @Counting", "Experiment.callbacks = [@ValidationVideo()]"),
        ("Experiment.callbacks", "does not render", "render_mode='rgb_array'"),
    ),
)
