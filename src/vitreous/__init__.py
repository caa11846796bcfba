"""From noisy cryo-EM particle images to 3D maps, without known poses.

``import vitreous as vt`` gives the names in ``__all__``. Each is loaded when it is first used, so
that the import itself is fast and needs no torch. Functions take tensors and plain values and
return plain results; they hold no global state.

>>> import vitreous as vt
>>> molecule = vt.phantom(16, 8.0, seed=1)
>>> vt.fsc(molecule, molecule).min().item() > 0.999
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitreous.api import CryoGAN as CryoGAN
    from vitreous.api import VaeGAN as VaeGAN
    from vitreous.api import align as align
    from vitreous.api import examine as examine
    from vitreous.api import phantom as phantom
    from vitreous.api import postprocess as postprocess
    from vitreous.api import simulate as simulate
    from vitreous.api import write_map as write_map
    from vitreous.api import write_particles as write_particles
    from vitreous.core.errors import DivergedError as DivergedError
    from vitreous.core.errors import InputError as InputError
    from vitreous.core.errors import ResourceError as ResourceError
    from vitreous.core.errors import UsageError as UsageError
    from vitreous.core.errors import VitreousError as VitreousError
    from vitreous.core.images import ImagesInMemory as ImagesInMemory
    from vitreous.core.images import ImageSource as ImageSource
    from vitreous.core.params import Optics as Optics
    from vitreous.core.params import Pose as Pose
    from vitreous.core.rotation import euler_to_matrix as euler_to_matrix
    from vitreous.core.rotation import matrix_to_euler as matrix_to_euler
    from vitreous.core.symmetry import point_group as point_group
    from vitreous.core.symmetry import symmetrise as symmetrise
    from vitreous.data.maps import read_map as read_map
    from vitreous.data.particles import Particles as Particles
    from vitreous.linop.operator import LinearOperator as LinearOperator
    from vitreous.maps.fsc import fsc as fsc
    from vitreous.maps.fsc import fsc_resolution as fsc_resolution
    from vitreous.maps.fsc import solvent_mask as solvent_mask
    from vitreous.methods.cryogan.config import CryoGanConfig as CryoGanConfig
    from vitreous.methods.em.config import InitialModelConfig as InitialModelConfig
    from vitreous.methods.em.config import RefinementConfig as RefinementConfig
    from vitreous.methods.em.initial_model import initial_model as initial_model
    from vitreous.methods.em.initial_model_result import InitialModel as InitialModel
    from vitreous.methods.em.micrograph_optics import ImageGroups as ImageGroups
    from vitreous.methods.em.refinement import Refinement as Refinement
    from vitreous.methods.joint.joint_refinement import JointConfig as JointConfig
    from vitreous.methods.joint.joint_refinement import JointRefinement as JointRefinement
    from vitreous.methods.reconstruct.half_maps import reconstruct as reconstruct
    from vitreous.methods.reconstruct.model_based_config import ModelBasedConfig as ModelBasedConfig
    from vitreous.methods.vaegan.config import VaeGanConfig as VaeGanConfig
    from vitreous.optim.admm import Admm as Admm
    from vitreous.optim.admm import admm as admm
    from vitreous.optim.admm_config import AdmmConfig as AdmmConfig
    from vitreous.optim.loop import Solver as Solver
    from vitreous.optim.loop import run as run
    from vitreous.optim.priors import FeasibleSet as FeasibleSet
    from vitreous.optim.priors import Prior as Prior
    from vitreous.optim.priors import SquaredNorm as SquaredNorm
    from vitreous.optim.priors import TotalVariation as TotalVariation
    from vitreous.optim.priors import WaveletSparsity as WaveletSparsity
    from vitreous.physics.ctf import CTF as CTF
    from vitreous.physics.noise import BackgroundPatches as BackgroundPatches
    from vitreous.physics.noise import PoissonNoise as PoissonNoise
    from vitreous.physics.noise import WhiteGaussian as WhiteGaussian
    from vitreous.physics.poses import GaussianEulerPoses as GaussianEulerPoses
    from vitreous.physics.poses import GaussianShift as GaussianShift
    from vitreous.physics.poses import NoShift as NoShift
    from vitreous.physics.poses import TablePoses as TablePoses
    from vitreous.physics.poses import TriangularShift as TriangularShift
    from vitreous.physics.poses import UniformPoses as UniformPoses
    from vitreous.physics.projector import Projector as Projector
    from vitreous.physics.shift import Shift as Shift
    from vitreous.physics.simulator import Simulator as Simulator

__version__ = "0.1.0"

_HOMES = {  # module below vitreous: its public names
    "api": "CryoGAN VaeGAN align examine phantom postprocess simulate write_map write_particles",
    "core.errors": "DivergedError InputError ResourceError UsageError VitreousError",
    "core.images": "ImageSource ImagesInMemory",
    "core.params": "Optics Pose",
    "core.rotation": "euler_to_matrix matrix_to_euler",
    "core.symmetry": "point_group symmetrise",
    "data.maps": "read_map",
    "data.particles": "Particles",
    "linop.operator": "LinearOperator",
    "maps.fsc": "fsc fsc_resolution solvent_mask",
    "methods.cryogan.config": "CryoGanConfig",
    "methods.em.config": "InitialModelConfig RefinementConfig",
    "methods.em.initial_model": "initial_model",
    "methods.em.initial_model_result": "InitialModel",
    "methods.em.micrograph_optics": "ImageGroups",
    "methods.em.refinement": "Refinement",
    "methods.joint.joint_refinement": "JointConfig JointRefinement",
    "methods.reconstruct.half_maps": "reconstruct",
    "methods.reconstruct.model_based_config": "ModelBasedConfig",
    "methods.vaegan.config": "VaeGanConfig",
    "optim.admm": "Admm admm",
    "optim.admm_config": "AdmmConfig",
    "optim.priors": "FeasibleSet Prior SquaredNorm TotalVariation WaveletSparsity",
    "optim.loop": "Solver run",
    "physics.ctf": "CTF",
    "physics.noise": "BackgroundPatches PoissonNoise WhiteGaussian",
    "physics.poses": "GaussianEulerPoses GaussianShift NoShift TablePoses TriangularShift"
    " UniformPoses",
    "physics.projector": "Projector",
    "physics.shift": "Shift",
    "physics.simulator": "Simulator",
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = list(_MODULE_OF)

if not TYPE_CHECKING:  # so that type checkers find fault with a name that is not public

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'vitreous' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"vitreous.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
