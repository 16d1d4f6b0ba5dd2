"""Nodes of somebody else, which the tests on the real ComfyUI put into a folder of custom nodes."""

from comfy_api.latest import ComfyExtension, io

Run = io.Custom("REFLECT_RUN")


class Invert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="OtherInvert", inputs=[io.Image.Input("image")], outputs=[io.Image.Output("out")])

    @classmethod
    def execute(cls, image):
        return io.NodeOutput(1 - image)


class Fewer(io.ComfyNode):
    """From round 2 on, one picture too few."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="OtherFewer", inputs=[io.Image.Input("image"), io.Int.Input("round")],
                         outputs=[io.Image.Output("out")])

    @classmethod
    def execute(cls, image, round):
        return io.NodeOutput(image if round < 2 else image[:1])


class Breaks(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="OtherBreaks", inputs=[Run.Input("run_in"), io.Int.Input("round")],
                         outputs=[Run.Output("run")])

    @classmethod
    def execute(cls, run_in, round):
        if round == 2:
            raise RuntimeError("somebody else's node")
        return io.NodeOutput(run_in)


class Nan(io.ComfyNode):
    """Hands on a run whose judge gave no number."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="OtherNan", inputs=[Run.Input("run_in")], outputs=[Run.Output("run")])

    @classmethod
    def execute(cls, run_in):
        import sys
        relay = sys.modules[type(run_in).__module__]
        types = sys.modules[type(run_in).__module__.replace("search.relay", "types")]

        class Judge:
            def judge(self, prompt, pictures):
                return [types.Verdict(float("nan"), False) for _ in pictures]

        return io.NodeOutput(relay.judge(run_in, Judge()))


class Cancel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="OtherCancel", inputs=[Run.Input("run_in")], outputs=[Run.Output("run")])

    @classmethod
    def execute(cls, run_in):
        import comfy.model_management
        comfy.model_management.interrupt_current_processing()
        return io.NodeOutput(run_in)


class Twice(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="OtherTwice", inputs=[Run.Input("run_in")],
                         outputs=[Run.Output("run", is_output_list=True)])

    @classmethod
    def execute(cls, run_in):
        return io.NodeOutput([run_in, run_in])


class Others(ComfyExtension):
    async def get_node_list(self):
        return [Invert, Fewer, Breaks, Nan, Cancel, Twice]


def comfy_entrypoint():
    return Others()
