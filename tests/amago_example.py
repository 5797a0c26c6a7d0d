"""A script as AMAGO's documentation describes them, with AMAGO's names and defaults. test_cli_utils runs it as ours."""

import argparse

import amago
import gymnasium
from amago import cli_utils
from amago.envs import AMAGOEnv
from amago.nets.cnn import IMPALAishCNN

HORIZON = 200


def make_env():
    env = gymnasium.make("CartPole-v1", max_episode_steps=HORIZON)
    return AMAGOEnv(env, env_name="CartPole")


def main():
    parser = argparse.ArgumentParser()
    cli_utils.add_common_cli(parser)
    parser.add_argument("--max_seq_len", type=int, default=128)
    parser.add_argument("--hide_rl2s", action="store_true")
    parser.add_argument("--eval_timesteps", type=int, default=1000)
    args = parser.parse_args()

    config = {
        "amago.nets.actor_critic.NCriticsTwoHot.min_return": 0.0,
        "amago.nets.actor_critic.NCriticsTwoHot.max_return": float(HORIZON),
        "amago.nets.actor_critic.NCriticsTwoHot.output_bins": 32,
        "amago.nets.actor_critic.PopArtLayer.init_nu": 100.0,
        "amago.nets.tstep_encoders.FFTstepEncoder.hide_rl2s": args.hide_rl2s,
        "amago.nets.tstep_encoders.CNNTstepEncoder.cnn_type": IMPALAishCNN,
    }
    tstep_encoder_type = cli_utils.switch_tstep_encoder(config, "ff", n_layers=2, d_hidden=64, d_output=32)
    traj_encoder_type = cli_utils.switch_traj_encoder(
        config, args.traj_encoder, args.memory_size, args.memory_layers, n_heads=4
    )
    agent_type = cli_utils.switch_agent(config, args.agent_type, num_critics=4, reward_multiplier=1.0, gamma=0.99)
    exploration_type = cli_utils.switch_exploration(config, "bilevel", steps_anneal=20_000, rollout_horizon=HORIZON)
    cli_utils.use_config(config, args.configs)

    for trial in range(args.trials):
        experiment = cli_utils.create_experiment_from_cli(
            args,
            make_train_env=make_env,
            make_val_env=make_env,
            max_seq_len=args.max_seq_len,
            traj_save_len=4 * args.max_seq_len,
            group_name=args.run_name,
            run_name=f"{args.run_name}_trial_{trial}",
            tstep_encoder_type=tstep_encoder_type,
            traj_encoder_type=traj_encoder_type,
            agent_type=agent_type,
            exploration_wrapper_type=exploration_type,
            val_timesteps_per_epoch=args.eval_timesteps,
            sample_actions=True,
            save_trajs_as="npz-compressed",
            learning_rate=5e-4,
            grad_clip=2.0,
        )
        assert isinstance(experiment, amago.Experiment)
        experiment = cli_utils.switch_async_mode(experiment, args.mode)
        experiment.start()
        experiment.learn()
        print(f"{experiment.run_name}: {experiment.evaluate_test(make_env, timesteps=args.eval_timesteps)}")


if __name__ == "__main__":
    main()
