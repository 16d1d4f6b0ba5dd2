"""The ComfyUI face of Reflect: thin nodes over `reflect_core`, which knows nothing of ComfyUI.

Nothing heavy is imported here: torch and diffusers' models come when a node first runs.
"""

from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./nodes/web"


class Reflect(ComfyExtension):
    async def get_node_list(self) -> list[type]:
        from .all_in_one import ReflectLoop
        from .files import ReflectLoadFiles
        from .judge import ReflectLoadJudge, ReflectRefiner, ReflectReflector, ReflectVerifier
        from .language_judge import ReflectLocalJudge, ReflectServerJudge
        from .loop import ReflectLoopController, ReflectLoopStart
        from .model import ReflectLoadModel
        from .records import ReflectLoadRun, ReflectShowRun
        from .reward_judge import ReflectAudit, ReflectEnsemble, ReflectRewardJudge
        from .sample import ReflectSample

        return [ReflectLoadModel, ReflectLoadFiles, ReflectLoadJudge, ReflectServerJudge, ReflectLocalJudge,
                ReflectRewardJudge, ReflectEnsemble, ReflectAudit, ReflectSample,
                ReflectVerifier, ReflectReflector, ReflectRefiner, ReflectLoopStart, ReflectLoopController,
                ReflectLoop, ReflectShowRun, ReflectLoadRun]


def comfy_entrypoint() -> Reflect:
    return Reflect()
